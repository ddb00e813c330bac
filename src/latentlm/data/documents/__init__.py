"""Multimodal documents: files of text and pictures -> `RawDocument`s, in the order a person would read them.

    file ─reader (`formats.py`)▶ record ─its own parts, or a template▶ RawDocument(parts: text | picture) ─▶ tokenizers

    records that share a value ─template over several records (`joined.py`)▶ RawDocument

Start with `DocumentDataConfig` and `open_documents`; `write_jsonl` keeps documents that a program made.
"""

from latentlm.data.documents.config import DocumentDataConfig, DocumentFormat, JoinConfig
from latentlm.data.documents.document import (
    DocumentSource,
    RawDocument,
    RawImage,
    RawPart,
    StoredCodes,
    StoredLatents,
    StoredMedium,
)
from latentlm.data.documents.opening import RecordDocuments, open_documents, open_image
from latentlm.data.documents.templates import DocumentTemplate
from latentlm.data.documents.writer import write_jsonl

__all__ = [
    "DocumentDataConfig",
    "DocumentFormat",
    "DocumentSource",
    "DocumentTemplate",
    "JoinConfig",
    "RawDocument",
    "RawImage",
    "RawPart",
    "RecordDocuments",
    "StoredCodes",
    "StoredLatents",
    "StoredMedium",
    "open_documents",
    "open_image",
    "write_jsonl",
]
