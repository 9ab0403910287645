"""MAE against transformers' ViTMAEForPreTraining as a whole, five steps against lightly's modules; its bad input."""

import copy

import pytest
import torch
import transformers as hf
from lightly.models import utils
from lightly.models.modules.masked_vision_transformer_decoder_timm import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import MaskedVisionTransformerTIMM
from torch import nn

from hf_orthossl import SSLConfig, SSLModel
from hf_orthossl.encoders import load_encoder
from hf_orthossl.encoders.position_tables import sincos_positions
from hf_orthossl.methods import Progress, build_method
from hf_orthossl.methods.masking import patchify, random_masks

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
SIZES |= {"image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6}
TIMM = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
DECODER = {"decoder_dim": 16, "decoder_depth": 2, "decoder_heads": 2}


def timm_encoder():
    return load_encoder("vit_tiny_patch16_224", **TIMM).double()


def transformers_encoder(folder):
    hf.ViTConfig(**SIZES).save_pretrained(folder)
    return load_encoder(str(folder)).double()


def views(count=6, size=16):
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64) for _ in range(5)]


def masks(method, images):
    """The masks that the method draws at this step."""
    patches = (images.shape[-1] // method.layout.patch) ** 2
    return random_masks(method.generators(len(images)), patches, method.visible(patches), images.device)


def blocks(ours, theirs):
    """Pairs of the parameters of timm's block and transformers' layer, those of queries, keys and values as parts."""
    attention = theirs.attention
    for name in ("weight", "bias"):
        for part, layer in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
            yield getattr(ours.attn.qkv, name), part, getattr(layer, name)
    layers = {
        ours.attn.proj: attention.o_proj, ours.mlp.fc1: theirs.mlp.fc1, ours.mlp.fc2: theirs.mlp.fc2,
        ours.norm1: theirs.layernorm_before, ours.norm2: theirs.layernorm_after,
    }  # fmt: skip
    yield from pairs_of(layers)


def pairs_of(layers):
    for ours, theirs in layers.items():
        yield ours.weight, None, theirs.weight
        yield ours.bias, None, theirs.bias


def pairs(encoder, decoder, oracle):
    """Each parameter here, which third of it if not all, and the parameter of the oracle."""
    own, vit = encoder.backbone, oracle.vit
    if encoder.library == "timm":
        yield own.cls_token, None, vit.embeddings.cls_token
        yield own.pos_embed, None, vit.embeddings.position_embeddings
        yield from pairs_of({own.patch_embed.proj: vit.embeddings.patch_embeddings.projection, own.norm: vit.layernorm})
        for ours, theirs in zip(own.blocks, vit.layers, strict=True):
            yield from blocks(ours, theirs)
    else:
        theirs = dict(vit.named_parameters())
        yield from ((own.get_parameter(name), None, theirs[name]) for name in theirs)
    head = oracle.decoder
    yield decoder.mask_token, None, head.mask_token
    yield from pairs_of(
        {decoder.embed: head.decoder_embed, decoder.norm: head.decoder_norm, decoder.predict: head.decoder_pred}
    )
    for ours, theirs in zip(decoder.blocks, head.decoder_layers, strict=True):
        yield from blocks(ours, theirs)


def oracle_of(encoder, method):
    config = hf.ViTMAEConfig(
        **SIZES, decoder_hidden_size=16, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
        decoder_intermediate_size=64, mask_ratio=method.config.mask_ratio, norm_pix_loss=method.config.norm_pix,
    )  # fmt: skip
    oracle = hf.ViTMAEForPreTraining(config).double()
    # The positions here are learned, and so are the oracle's for this comparison.
    oracle.vit.embeddings.position_embeddings.requires_grad_(True)
    with torch.no_grad():
        for ours, part, theirs in pairs(encoder, method.decoder, oracle):
            theirs.copy_((ours if part is None else ours.chunk(3)[part]).view_as(theirs))
    return oracle


@pytest.mark.parametrize("method", ["mae", "ijepa"])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_an_encoder_without_weights_has_fixed_positions(library, method, tmp_path):
    """Those of lightly, zero for the class token, in the target network too, and not trained."""
    transformers_encoder(tmp_path)
    start = {"backbone": str(tmp_path)} if library == "transformers" else {"backbone": "vit_tiny_patch16_224"}
    kwargs = {} if library == "transformers" else {key: TIMM[key] for key in ("patch_size", "embed_dim", "depth")}
    config = SSLConfig(**start, image_size=16, backbone_config=kwargs, method=method)
    model = SSLModel(config)
    name = "pos_embed" if library == "timm" else "embeddings.position_embeddings"
    table = model.encoder.backbone.get_parameter(name)
    expected = nn.Parameter(torch.empty(1, 17, 24), requires_grad=False)
    utils.initialize_2d_sine_cosine_positional_embedding(expected, has_class_token=True)
    torch.testing.assert_close(table.detach(), expected.detach(), rtol=0, atol=1e-6)
    assert not table.requires_grad
    if method == "ijepa":
        torch.testing.assert_close(model.method.target.stack[0].backbone.get_parameter(name), table, rtol=0, atol=0)
    config = SSLConfig(
        **start, image_size=16, backbone_config=kwargs, method=method, method_config={"fixed_positions": False}
    )
    learned = SSLModel(config).encoder.backbone.get_parameter(name)
    assert learned.requires_grad
    assert (learned - table).norm() > 0.1


def test_given_weights_keep_their_positions(tmp_path):
    encoder = transformers_encoder(tmp_path)
    encoder.backbone.save_pretrained(tmp_path)
    model = SSLModel(SSLConfig(pretrained=str(tmp_path), method="mae"))
    table = model.encoder.backbone.embeddings.position_embeddings
    torch.testing.assert_close(table.double(), encoder.backbone.embeddings.position_embeddings)
    assert table.requires_grad


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.3])
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_loss_and_gradients_are_those_of_transformers(library, mask_ratio, norm_pix, tmp_path):
    encoder = timm_encoder() if library == "timm" else transformers_encoder(tmp_path)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)  # no zeros, no ones
    method = build_method("mae", encoder, {**DECODER, "mask_ratio": mask_ratio, "norm_pix": norm_pix}).double()
    oracle = oracle_of(encoder, method)
    # transformers 5.24 leaves the positions of a new model at zero, unlike the authors' code; its own function, in
    # float32, has them.
    oracle.decoder.initialize_weights(16)
    exact = sincos_positions(4, 4, 16)
    torch.testing.assert_close(oracle.decoder.decoder_pos_embed[0, 1:], exact, rtol=0, atol=1e-6)
    oracle.decoder.decoder_pos_embed.data[0, 1:] = exact

    images = views()[0]
    keep, masked = masks(method, images)
    assert keep.shape[1] == {0.75: 4, 0.3: 11}[mask_ratio]
    noise = torch.ones(len(images), 16).scatter(1, keep, 0.0)
    oracle.decoder.mask_token.data.copy_(method.decoder.mask_token)
    theirs = oracle(images, noise=noise)
    assert torch.equal(theirs.mask.bool(), torch.zeros(len(images), 16, dtype=torch.bool).scatter(1, masked, True))
    ours = method(encoder, [images])
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-12, atol=1e-12)
    ours.loss.backward()
    theirs.loss.backward()
    compared = set()
    for own, part, other in pairs(encoder, method.decoder, oracle):
        gradient = own.grad if part is None else own.grad.chunk(3)[part]
        torch.testing.assert_close(gradient.view_as(other), other.grad, rtol=1e-9, atol=1e-11)
        compared.add(own)
    trained = {p for p in [*encoder.parameters(), *method.parameters()] if p.requires_grad}
    assert compared == trained


def test_five_steps_are_those_of_lightlys_modules():
    encoder = timm_encoder()
    method = build_method("mae", encoder, DECODER).double()
    backbone = MaskedVisionTransformerTIMM(
        copy.deepcopy(encoder.backbone), weight_initialization="skip", pos_embed_initialization="skip"
    )
    head = MaskedVisionTransformerDecoderTIMM(num_patches=16, embed_dim=16, depth=2, num_heads=2).double()
    embed, predict = (copy.deepcopy(layer) for layer in (method.decoder.embed, method.decoder.predict))
    head.blocks.load_state_dict(method.decoder.blocks.state_dict())
    head.norm.load_state_dict(method.decoder.norm.state_dict())
    head.mask_token.data.copy_(method.decoder.mask_token.view(1, 1, -1))
    head.pos_embed.data[0, 1:] = sincos_positions(4, 4, 16)
    backbone.mask_token = None

    def step(number, images, optimizer, loss):
        method.begin_step(Progress(number, 5, 5, seed=1))
        optimizer.zero_grad()
        loss(images).backward()
        optimizer.step()

    def expected(images):
        keep, masked = (index + 1 for index in masks(method, images))
        keep = torch.cat([torch.zeros(len(images), 1, dtype=torch.long), keep], dim=1)
        visible = embed(backbone.encode(images, idx_keep=keep))
        tokens = utils.repeat_token(head.mask_token, (len(images), 17))
        decoded = head(utils.set_at_index(tokens, keep, visible))
        target = utils.get_at_index(utils.patchify(images, 4), masked - 1)
        prediction = predict(utils.get_at_index(decoded, masked))
        return nn.functional.mse_loss(prediction, utils.normalize_mean_var(target))

    parameters = [p for module in (backbone, head, embed, predict) for p in module.parameters() if p.requires_grad]
    theirs = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    ours = torch.optim.SGD(
        [p for p in [*encoder.parameters(), *method.parameters()] if p.requires_grad], lr=0.1, momentum=0.9
    )
    for number, images in enumerate(views()):
        step(number, images, theirs, expected)
        step(number, images, ours, lambda images: method(encoder, [images]).loss)
    tolerance = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(encoder.backbone.state_dict(), backbone.vit.state_dict(), **tolerance)
    torch.testing.assert_close(method.decoder.blocks.state_dict(), head.blocks.state_dict(), **tolerance)
    torch.testing.assert_close(method.decoder.predict.state_dict(), predict.state_dict(), **tolerance)
    torch.testing.assert_close(method.decoder.mask_token, head.mask_token.flatten(), **tolerance)


def test_patches_hold_the_pixels_of_their_square():
    images = torch.arange(2 * 3 * 8 * 12).view(2, 3, 8, 12)
    patches = patchify(images, 4)
    assert patches.shape == (2, 6, 48)
    square = images[1, :, 4:8, 8:12]  # the last in raster order
    assert torch.equal(patches[1, 5], square.permute(1, 2, 0).flatten())


def test_a_bright_patch_is_predicted_like_a_dark_one_with_normalized_pixels():
    """Shifting and scaling the pixels of a patch leaves its normalized target as it is."""
    method = build_method("mae", timm_encoder(), DECODER).double()
    patches, predictions = torch.randn(2, 4, 5, 48, dtype=torch.float64)
    loss = method.loss(predictions, patches)
    torch.testing.assert_close(method.loss(predictions, 3 * patches + 7), loss, rtol=1e-5, atol=0)
    assert method.loss(predictions, torch.ones_like(patches)).isfinite()


def test_each_image_and_each_step_has_its_masks_of_equal_size():
    method = build_method("mae", timm_encoder(), DECODER)
    drawn = []
    for step in (0, 0, 1):
        method.begin_step(Progress(step, 5, 5, seed=1))
        drawn.append(masks(method, torch.empty(400, 3, 16, 16)))
    (first, masked), again, other = drawn
    assert torch.equal(first, again[0])
    assert not torch.equal(first, other[0])
    assert torch.equal(torch.cat([first, masked], dim=1).sort(dim=1).values, torch.arange(16).expand(400, 16))
    # 400 draws of 4 of 16: each patch about 100 times, with a standard deviation of 8.7.
    assert (first.flatten().bincount(minlength=16) - 100).abs().max() < 40


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0: it must be above 0"),
        (
            {"mask_ratio": 0.95},
            "mask_ratio is 0.95, which leaves 0 of the 16 patches of a view: .*mask_ratio=0.937",
        ),
        ({"mask_ratio": 1.0}, "leaves 0 of the 16 patches"),
        ({"decoder_dim": 18}, "decoder_dim is 18 and decoder_heads is 16: decoder_dim must be a multiple of"),
        ({"decoder_dim": 6, "decoder_heads": 2}, "and of 4 for its positions"),
        ({"decoder_mlp_ratio": 0}, "decoder_mlp_ratio is 0.0"),
    ],
)
def test_bad_settings(config, said):
    with pytest.raises(ValueError, match=said):
        build_method("mae", timm_encoder(), config)


def test_the_least_that_can_stay_visible_does():
    # 16·(1 − 0.9375) is 1, and 10·(1 − 0.9) is below 1 in floating point.
    assert build_method("mae", timm_encoder(), {**DECODER, "mask_ratio": 0.9375}).visible(16) == 1
    assert build_method("mae", timm_encoder(), {**DECODER, "mask_ratio": 0.9}).visible(10) == 1


def test_a_convolutional_network_is_refused():
    with pytest.raises(ValueError, match="method is mae, which masks patches, and backbone 'resnet10t' has no patch"):
        build_method("mae", load_encoder("resnet10t", image_size=32))
