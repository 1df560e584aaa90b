"""Indexes past one machine: codes in LanceDB (embedded, on disks and object stores) or Milvus (distributed)."""

from bigr_repr.retrieval.stores.store import Header, Store, StoreIndex, is_store, open_store, push

__all__ = ["Header", "Store", "StoreIndex", "is_store", "open_store", "push"]
