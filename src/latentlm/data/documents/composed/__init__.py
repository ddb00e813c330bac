"""Documents composed from labelled pictures: captions, questions, interleaved texts, few-shot names.

    labelled pictures ─open_pools▶ Pools ─Dealer (keyed)▶ a task of `tasks.py` ▶ RawDocument with its answer

Small data sets have labels and no captions, let alone interleaved documents (paper Section 3.2, Table 3). Labels are
enough to write documents of which every word is true, so that whatever a model says about them can be checked.
"""

from latentlm.data.documents.composed.config import ComposedDataConfig, PoolConfig
from latentlm.data.documents.composed.documents import ComposedDocuments, fit_pictures, open_composed, split_prompt
from latentlm.data.documents.composed.tasks import TASKS

__all__ = [
    "TASKS",
    "ComposedDataConfig",
    "ComposedDocuments",
    "PoolConfig",
    "fit_pictures",
    "open_composed",
    "split_prompt",
]
