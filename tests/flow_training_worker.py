"""The processes of test_flow_training.py: several runs after each other in one launch of torchrun.

torchrun --nproc_per_node N tests/flow_training_worker.py RECIPE JOBS.json
"""

import json
import sys
from pathlib import Path

from megatron_music.config.load import load_run
from megatron_music.config.log import quiet_dependencies
from megatron_music.training.loop import DONE, train

quiet_dependencies()
for overrides in json.loads(Path(sys.argv[2]).read_text()):
    assert train(load_run(sys.argv[1], overrides)) == DONE, overrides
