"""distgan trains GANs with TensorFlow and Keras, and gives the same run on one device and on many."""

__version__ = "0.1.0"
