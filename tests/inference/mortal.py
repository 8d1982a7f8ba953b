"""A tracker's worker that does not live long; in a module that Ray's processes can import."""

import os


class Mortal:
    def build(self, job, gpu_share):
        return None

    def track(self, replies, family):
        os._exit(1)
