"""Networks: latents and labels to images, images and labels to logits."""

from distgan.registry import Table

MODELS = Table(
    "model",
    {
        "dcgan": "distgan.models.dcgan:Dcgan",
        "resnet": "distgan.models.resnet:Resnet",
        "biggan": "distgan.models.biggan:Biggan",
    },
    offers=("latent_size", "generator", "discriminator"),
)
