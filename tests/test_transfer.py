"""What a generator draws by, and where weights may come from: --init_from, frozen layers, standing statistics."""

import numpy as np
from conftest import SMALL, distgan

from distgan.training import checkpoint

SHORT = (*SMALL, "--train.total_kimg=0.064", "--train.sample_kimg=0")


def test_weights_of_another_run(tmp_path, refused):
    distgan("train", f"--run_dir={tmp_path / 'one'}", *SHORT)
    words = [f"--init_from={tmp_path / 'one'}", f"--run_dir={tmp_path / 'two'}", *SHORT]
    # With a learning rate of 0 the weights stay those that the run started from.
    still = [
        "--train.freeze_discriminator=1",
        "--optimizer.learning_rate=0",
        "--ema.halflife_kimg=1000",
        "--ema.rampup=0",
    ]
    distgan("train", *words, *still)
    one, two = (checkpoint.newest(tmp_path / name / "checkpoints").arrays for name in ("one", "two"))
    weights = [name for name in one if name.startswith(("generator/", "discriminator/")) and "moving" not in name]
    assert len(weights) > 10
    assert all(np.array_equal(one[name], two[name]) for name in weights)
    assert two["images_seen"] == 64
    # The first layer has no moments: it is not trained.
    frozen = {name.split("/")[-1] for name in one} - {name.split("/")[-1] for name in two}
    assert frozen == {"discriminator_down1_kernel_momentum", "discriminator_down1_kernel_velocity"} | {
        "discriminator_down1_bias_momentum",
        "discriminator_down1_bias_velocity",
    }

    for wrong, said in (
        ([f"--init_from={tmp_path / 'none'}"], "holds no run with a checkpoint"),
        ([f"--init_from={tmp_path / 'one'}", "--model.width=8"], "has other networks: generator/project/kernel is"),
    ):
        line = refused("train", f"--run_dir={tmp_path / 'three'}", *SHORT, *wrong)
        assert said in line
        assert not (tmp_path / "three").exists()


def test_standing_statistics():
    """They are the moments of the generator's own images: those of a big batch, and not the moving ones."""
    import tensorflow as tf

    from distgan import schema, seeds
    from distgan.config import Config
    from distgan.data.source import Description
    from distgan.evaluation.sampling import Sampler
    from distgan.training.state import build_network

    config = schema.build(Config, {"model.width": 4, "ema.statistics": "standing"})
    description = Description((16, 16, 1), (), ())
    generator = build_network(config, description, "generator", "generator_ema")
    sampler = Sampler(config, generator, description)
    names = [variable.path for variable in generator.non_trainable_variables]
    found = dict(zip(names, sampler.statistics(), strict=True))
    latents = seeds.normal(seeds.key(0, "standing/latents"), tf.constant(0, tf.int64), 1024, (100,)).numpy()
    project = generator.chain[0].kernel.numpy()
    # The first batch norm sees latents times a matrix.
    mapped = (latents @ project).reshape(16, 64, -1)
    np.testing.assert_allclose(found["generator_ema/norm0/moving_mean"], mapped.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(found["generator_ema/norm0/moving_variance"], mapped.var(1).mean(0), rtol=1e-4)
    assert np.array_equal(generator.chain[1].moving_mean, np.zeros(project.shape[1]))
