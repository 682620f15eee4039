"""The fidelity report: what each encoder and setting costs in bytes and in likeness to the uncompressed crop."""
