"""`adapt`: the settings for going on from foundation weights, where the user sets none.

No paper tunes all of them for continued self-supervised training. Each value is taken from work that trains on from
good weights, and is at the careful end of what is published:

- AdamW, weight decay 0.05, layer decay 0.75, a tenth or less of warm-up: fine-tuning of MAE (He et al., CVPR 2022,
  table 9: base rate 1e-3, 0.75, 5 of 100 epochs), BEiT (Bao et al., ICLR 2022: 0.65 for ViT-B, 0.75 for ViT-L).
- A peak rate of 1e-4 for 256 images, a tenth of theirs: there are no labels to pull the features back. DINO trains from
  scratch with 5e-4 for 256 images (Caron et al., ICCV 2021), and DINOv2's last phase, at high resolution, goes on at a
  rate that has come down (Oquab et al., 2023).
- Heads alone for the first tenth of the run: gradients through random heads distort good features, see "Fine-Tuning can
  Distort Pretrained Features" (Kumar et al., ICLR 2022); the encoder then starts after the warm-up.
- The penalty "so_init", which keeps the Gram matrices of the start, as DINOv3 keeps those of features (Siméoni et al.,
  2025); SO itself would draw foundation weights towards others.
"""

from dataclasses import replace

from ..methods import TrainingRecipe

PENALTY = "so_init"
LAYER_DECAY = 0.75
# Shares of the run: in which the rate rises, and in which only the heads learn.
WARMUP = FROZEN_SHARE = 0.1
# Options that the preset sets where the user did not, besides `regularizer`.
OPTIONS = ("optim", "learning_rate", "weight_decay", "warmup_steps", "layer_decay", "freeze_epochs")


def adaptation_of(recipe: TrainingRecipe) -> TrainingRecipe:
    """Return a method's recipe with optimizer, rates and warm-up for going on from foundation weights."""
    return replace(
        recipe,
        optim="adamw_torch",
        learning_rate=1e-4,
        lr_batch_size=256,
        weight_decay=0.05,
        warmup_epochs=0.0,
        warmup_start_lr=0.0,
    )
