"""`ns-train` as one of several machines, which writes what its model was before and after training.

    python tests/one_machine.py FILE raygauss --machine.num-machines 2 --machine.machine-rank 0 ...

FILE gets two lines, each a digest of all tensors of the pipeline. Only rank 0 saves a checkpoint, so this is how the
models of two ranks can be compared.
"""

import functools
import hashlib
import sys
from pathlib import Path

from nerfstudio.scripts import train

train_loop = train.train_loop


def digest(pipeline):
    result = hashlib.sha256()
    for name, tensor in sorted(pipeline.state_dict().items()):
        result.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        result.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return result.hexdigest()


def train_and_write(path, local_rank, world_size, config, global_rank=0):
    """nerfstudio's `train_loop`; runs in the process that `ns-train` starts."""
    setup = config.setup

    def with_digests(**words):
        trainer = setup(**words)
        training = trainer.train

        def train_between_digests():
            before = digest(trainer.pipeline)
            training()
            path.write_text(f"{before}\n{digest(trainer.pipeline)}\n")

        trainer.train = train_between_digests
        return trainer

    config.setup = with_digests
    train_loop(local_rank, world_size, config, global_rank)


if __name__ == "__main__":
    train.train_loop = functools.partial(train_and_write, Path(sys.argv.pop(1)).resolve())
    train.entrypoint()
