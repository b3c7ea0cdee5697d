"""Everything that is stored or crosses a process."""
