"""Files and folders on this machine: modes, durable writes."""
