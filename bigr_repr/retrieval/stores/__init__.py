"""Indexes beyond one machine: codes in LanceDB (embedded, on disks and object stores) or Milvus (distributed)."""
