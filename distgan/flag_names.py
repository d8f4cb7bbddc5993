"""What to write instead of a flag that distgan does not have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

# What other trainers call it -> the flag that is meant.
CALLED_ELSEWHERE: Mapping[str, str] = {
    "batch": "train.global_batch",
    "batch_size": "train.global_batch",
    "batch_size_per_gpu": "train.global_batch",
    "bs": "train.global_batch",
    "config": "preset",
    "cfg": "preset",
    "dataset": "data.source",
    "data": "data.path",
    "data_dir": "data.path",
    "dataroot": "data.path",
    "epochs": "train.total_kimg",
    "kimg": "train.total_kimg",
    "max_steps": "train.total_kimg",
    "n_epochs": "train.total_kimg",
    "num_epochs": "train.total_kimg",
    "num_iterations": "train.total_kimg",
    "steps": "train.total_kimg",
    "total_steps": "train.total_kimg",
    "gpus": "strategy",
    "gpu_ids": "strategy",
    "num_gpus": "strategy",
    "image_size": "data.resolution",
    "img_size": "data.resolution",
    "imsize": "data.resolution",
    "resolution": "data.resolution",
    "size": "data.resolution",
    "learning_rate": "optimizer.learning_rate",
    "lr": "optimizer.learning_rate",
    "lr_d": "optimizer.discriminator_learning_rate",
    "d_lr": "optimizer.discriminator_learning_rate",
    "dlr": "optimizer.discriminator_learning_rate",
    "beta1": "optimizer.beta_1",
    "beta2": "optimizer.beta_2",
    "latent_dim": "model.latent_size",
    "nz": "model.latent_size",
    "z_dim": "model.latent_size",
    "ngf": "model.width",
    "ndf": "model.width",
    "mirror": "data.flip",
    "x_flip": "data.flip",
    "num_workers": "data.threads",
    "workers": "data.threads",
    "fp16": "precision",
    "amp": "precision",
    "mixed_precision": "precision",
    "gamma": "objective.r1.gamma",
    "r1_gamma": "objective.r1.gamma",
    "logdir": "run_dir",
    "log_dir": "run_dir",
    "model_dir": "run_dir",
    "outdir": "run_dir",
    "out_dir": "run_dir",
    "output_dir": "run_dir",
    "save_dir": "run_dir",
    "resume": "run_dir",
    "snap": "checkpoint.every_kimg",
    "save_every": "checkpoint.every_kimg",
    "cond": "model.conditional",
    "conditional": "model.conditional",
    "aug": "objective.augmentation",
    "ema_decay": "ema.halflife_kimg",
    "wandb_project": "tracking.wandb_project",
    "project": "tracking.wandb_project",
    "seed_everything": "seed",
    "n_samples": "sample.count",
    "num_samples": "sample.count",
    "trunc": "sample.truncation",
    "truncation": "sample.truncation",
    "metrics": "evaluation.metrics",
}
# What is to be known of a flag whose number is another one than elsewhere.
ADVICE: Mapping[str, str] = {
    "train.global_batch": "over all replicas",
    "train.total_kimg": "thousands of images: an epoch is the images of the data / 1,000, a step the global batch / 1,000",
    "strategy": "all GPUs of the machine are taken; CUDA_VISIBLE_DEVICES chooses some",
    "ema.halflife_kimg": "the images after which a weight counts half, in thousands",
    "run_dir": "a run goes on where its directory stands",
    "objective.r1.gamma": "with --objective.regularizers=r1",
}


def meant(name: str, known: Sequence[str]) -> str:
    """The end of the message about an unknown flag: the flag that is meant, or the nearest name, or where all are listed.

    >>> meant("batch_size", ["train.global_batch"])
    '; here it is --train.global_batch (over all replicas)'
    >>> meant("widht", ["model.width", "seed"])
    '; did you mean --model.width?'
    """
    plain = name.replace("-", "_").lower()
    ends = {each.rpartition(".")[2]: each for each in sorted(known, key=len, reverse=True)}
    flag = CALLED_ELSEWHERE.get(plain) or ends.get(plain, "")
    if flag in known or flag == "objective.r1.gamma":
        advice = f" ({ADVICE[flag]})" if flag in ADVICE else ""
        return f"; here it is --{flag}{advice}"
    near = difflib.get_close_matches(plain, known, n=1)
    near = near or [ends[each] for each in difflib.get_close_matches(plain, ends, n=1)]
    return f"; did you mean --{near[0]}?" if near else "; --help lists all flags"
