"""What a run takes of the machine: its processes, a device, a type of numbers, and memory."""
