"""The signals that ask a run to stop, and how they wait for whoever answers them."""

import signal

STOPPING = (
    signal.SIGTERM,  # From a cluster, or `kill`.
    signal.SIGINT,  # Ctrl-C.
    signal.SIGHUP,  # The terminal was closed, or ssh lost.
    signal.SIGUSR1,  # The warnings of Slurm and other queues before they end a job.
    signal.SIGUSR2,
    signal.SIGXCPU,  # The time on the CPU that `ulimit -t` or a queue allows is used up.
)


def hold() -> None:
    """From here on they wait."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def ignore() -> None:
    """From here on they change nothing."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


def release() -> None:
    """Those that waited come now, and later ones at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
