"""A process with a model and a cache: ``transformers_worker.py DIRECTORY KIND DTYPE``.

Each line that it reads is a prompt's ids in JSON; it answers with those after it, and how many were restored.
"""

from __future__ import annotations

import json
import sys

import models
import torch

from ds4kv.engines.transformers import PrefixCache, generate

torch.set_num_threads(1)
directory, kind, dtype = sys.argv[1:]
model = models.make(kind, dtype=getattr(torch, dtype))
with PrefixCache(directory, model, min_tokens=16, step_tokens=8) as cache:
    for line in sys.stdin:
        ids = json.loads(line)
        answer = generate(model, ids, cache=cache, max_new_tokens=16)
        print(json.dumps([answer[0, len(ids) :].tolist(), cache.restored]), flush=True)
