"""Functions that tell people or other services: by webhook, mail or chat."""
