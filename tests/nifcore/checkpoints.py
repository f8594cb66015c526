"""Checkpoints for tests."""


class Memory:
    """A checkpoint kept in memory, by default saved at every chance."""

    def __init__(self, data=None, interval_seconds=0.0):
        self.data, self.interval_seconds = data, interval_seconds

    def load(self):
        return self.data

    def save(self, data):
        self.data = data
