"""Files that tasks have left, and results of shell functions."""

from oncue.client.files.output_file import OutputFile, save_all
from oncue.client.files.shell_result import ShellResult

__all__ = ["OutputFile", "ShellResult", "save_all"]
