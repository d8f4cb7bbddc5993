"""The numbers of the default preset do not move unnoticed."""

from golden import make


def test_first_twenty_steps(tmp_path):
    make.train(tmp_path)
    make.check(tmp_path)
