"""Resources of a run: processes, device, number type and memory."""
