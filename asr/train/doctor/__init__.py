"""What can be known before a training: `asr doctor` says all of it, the start of a training what takes seconds."""
