"""Adapters between nerfstudio's commands and the methods: launching, loading, rendering, exporting."""
