"""List the options of `transformers.TrainingArguments` that a run does not take, and why; without torch.

Every field of `TrainingArguments` is in one of three lists. [`TrainingOptions`] holds those that work, in the Trainer
and in the accelerate loop alike. `REFUSED` holds those that a user of the Trainer may expect, each with its reason and
what to do instead. `HIDDEN` holds those that have nothing to do with this tool. A field of a newer release that no list
names counts as hidden. None of the last two can be set in any way, so no option is ever accepted without effect.
docs/training_options.md is the table of all.
"""

# Option → why it cannot be used, and what to do instead.
REFUSED = {
    "accelerator_config": "batches must not depend on it; leave it out",
    "activation_checkpointing": "older releases of transformers do not know it; pass --gradient_checkpointing",
    "auto_find_batch_size": "another batch size is another training; pass a smaller --per_device_train_batch_size, "
    "or --gradient_cache",
    "data_seed": "--seed decides the order of the images too; pass --seed",
    "dataloader_in_order": "batches in any other order could not be repeated; leave it out",
    "deepspeed": "accelerate configures it; pass accelerate launch --config_file "
    "scripts/accelerate_configs/deepspeed_zero2.yaml",
    "do_eval": "pretraining has no labels to evaluate with; pass --knn_steps or --linear_probe_steps",
    "enable_jit_checkpoint": "SIGTERM always ends a run with a checkpoint; leave it out",
    "eval_on_start": "pretraining has no labels to evaluate with; kNN is measured before training, see --knn_images",
    "eval_steps": "pretraining has no labels to evaluate with; pass --knn_steps or --linear_probe_steps",
    "eval_strategy": "pretraining has no labels to evaluate with; pass --knn_steps or --linear_probe_steps",
    "fsdp": "accelerate configures it; pass accelerate launch --config_file scripts/accelerate_configs/fsdp2.yaml",
    "fsdp_config": "accelerate configures it; pass accelerate launch --config_file "
    "scripts/accelerate_configs/fsdp2.yaml",
    "full_determinism": "from the same --seed a run on CPUs repeats bit for bit without it; leave it out",
    "ignore_data_skip": "a resumed run continues with the images that it has not yet seen; leave it out",
    "label_smoothing_factor": "pretraining has no labels to smooth; leave it out",
    "load_best_model_at_end": "no labels say which step is best; pass --knn_steps, and choose a checkpoint",
    "log_level": "it sets the Trainer's messages only; set TRANSFORMERS_VERBOSITY=info",
    "logging_first_step": "--logging_steps decides which steps are logged; pass --logging_steps 1",
    "logging_nan_inf_filter": "a loss that is not finite must stop the run; pass --on_nonfinite skip to go on",
    "logging_strategy": "the log goes by steps; pass --logging_steps, as a share of the run if below 1",
    "neftune_noise_alpha": "it adds noise to embeddings of words; images are augmented by --views",
    "optim_target_modules": "only GaLore and APOLLO read it, which are made for language models; leave it out",
    "per_device_eval_batch_size": "pretraining has no labels to evaluate with; leave it out",
    "project": "each tracker has a variable for it; set WANDB_PROJECT or the like",
    "remove_unused_columns": "views need every column; leave it out",
    "resume_from_checkpoint": "the newest valid checkpoint in output_dir is used; pass --resume",
    "run_name": "each tracker has a variable for it; set WANDB_NAME or the like",
    "save_only_model": "a checkpoint without the optimizer cannot be resumed; output_dir/encoder holds the model alone",
    "train_sampling_strategy": "the images are shuffled in every epoch, by --seed; leave it out",
    "use_liger_kernel": "its kernels are for language models; pass --torch_compile for faster ones",
}

# Why nobody needs them here → options.
HIDDEN = {
    "there is no evaluation with labels during training": (
        "batch_eval_metrics",
        "bf16_full_eval",
        "do_predict",
        "eval_accumulation_steps",
        "eval_delay",
        "eval_do_concat_batches",
        "eval_use_gather_object",
        "fp16_full_eval",
        "greater_is_better",
        "include_for_metrics",
        "label_names",
        "metric_for_best_model",
        "prediction_loss_only",
    ),
    "it is for text": (
        "average_tokens_across_devices",
        "include_num_input_tokens_seen",
        "length_column_name",
        "use_cache",
    ),
    "it belongs to an option that is refused": (
        "activation_checkpointing_kwargs",
        "gradient_checkpointing_kwargs",
        "liger_kernel_config",
    ),
    "it is the launcher's": ("local_rank", "log_level_replica", "log_on_each_node", "save_on_each_node"),
    "every process sends its gradients as torch does by default": ("ddp_bucket_cap_mb", "ddp_static_graph"),
    "weights are divided by accelerate's configuration alone": ("parallelism_config",),
    "it is for debugging the Trainer": ("debug", "skip_memory_metrics", "torch_empty_cache_steps"),
    "training is all that this command does": ("do_train",),
    "checkpoints hold the whole state anyway": ("restore_callback_states_from_checkpoint",),
    "trackio has variables for it": ("trackio_bucket_id", "trackio_space_id", "trackio_static_space_id"),
}
_WHY_HIDDEN = {name: why for why, names in HIDDEN.items() for name in names}

# Names of older releases, and of other tools, whose nearest name here would mislead.
ELSEWHERE = {
    "batch_size": "pass --per_device_train_batch_size",
    "evaluation_strategy": REFUSED["eval_strategy"],
    "group_by_length": REFUSED["train_sampling_strategy"],
    "lr": "pass --learning_rate",
    "logging_dir": "trackers write into output_dir; leave it out",
    "no_cuda": "pass --use_cpu",
    "overwrite_output_dir": "pass --overwrite_output",
    "warmup_ratio": "pass --warmup_steps, as a share of the run if below 1",
}


def refusal(name: str, inherited: bool = False) -> str | None:
    """Return why an option is not taken, or `None` if nothing is known of it.

    Args:
        name (`str`): The option, without dashes in front.
        inherited (`bool`, defaults to `False`): Whether it is known to be an option of `TrainingArguments`.
    """
    if why := REFUSED.get(name) or ELSEWHERE.get(name):
        return why
    if why := _WHY_HIDDEN.get(name) or ("it is not known to this release" if inherited else None):
        return f"it is an option of transformers.TrainingArguments alone ({why}); leave it out"
    return None
