"""Where nerfstudio's commands meet the methods: launching, loading, rendering, exporting."""
