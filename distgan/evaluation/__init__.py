"""Images from a generator, and the features of images that scores compare."""
