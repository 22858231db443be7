"""Compiled code for steps on the CPU: the LSTM's, and rules' as ``interchange.emit`` writes them."""

from common.kernels.build import which
from common.kernels.lstm import Kernel, kernel, missing
from common.kernels.rule import RuleCode, addresses, rule_code

__all__ = ["Kernel", "RuleCode", "addresses", "kernel", "missing", "rule_code", "which"]
