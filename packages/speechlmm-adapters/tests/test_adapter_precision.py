"""Sums that are computed in bfloat16 are caught by the contract, which lets go of what is only close to a bound."""

from __future__ import annotations

import pytest
import torch

from speechlmm_adapters.cif import adapter as cif
from speechlmm_adapters.cif import fire
from speechlmm_adapters.cif.config import CIFAdapterConfig
from speechlmm_adapters.ctc import adapter as ctc
from speechlmm_adapters.ctc.config import CTCAdapterConfig
from speechlmm_core.testing import adapter_checks

CHECKS = ("bfloat16", "built_in_bfloat16", "bfloat16.video", "built_in_bfloat16.video")


def weights_in_low_precision(patch):
    """CIF's weights stay in the network's dtype, and are summed up in it."""
    plain = fire.accumulate

    def careless(weights, threshold, *others):
        wide = weights.cumsum(dim=1).double().diff(dim=1, prepend=weights.new_zeros(len(weights), 1).double())
        return plain(wide, threshold, *others)

    patch.setattr(cif, "_wide", lambda dtype: dtype)
    patch.setattr(cif, "accumulate", careless)


def overlaps_in_low_precision(patch):
    """The sums of CIF's weights are rounded before frames are shared out; their ends stay as they are."""
    plain = cif.fire

    def careless(values, sums, lengths, num_frames):
        low = sums.to(values.dtype).to(sums.dtype)
        return plain(values, torch.cat([low[:, :-1], sums[:, -1:]], dim=1), lengths, num_frames)

    patch.setattr(cif, "fire", careless)


def runs_in_low_precision(patch):
    """Runs of equal labels are counted in the frames' dtype, which knows no odd number above 256 in bfloat16."""
    plain, dtypes = ctc.group_runs, []

    class Careless(ctc.CTCAdapter):
        def forward(self, features, target_lengths=None):
            dtypes.append(features.values.dtype)
            return super().forward(features, target_lengths)

    patch.setattr(ctc, "group_runs", lambda runs, used, bound: plain(runs.to(dtypes[-1]).long(), used, bound))
    patch.setattr(ctc, "CTCAdapter", Careless)


FAULTS = [
    (CIFAdapterConfig(hidden_size=32), weights_in_low_precision),
    (CIFAdapterConfig(hidden_size=32), overlaps_in_low_precision),
    (CTCAdapterConfig(), runs_in_low_precision),
    (CTCAdapterConfig(vocabulary="characters", merge="softmax"), runs_in_low_precision),
]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("config", "fault"), FAULTS, ids=[fault.__name__ for _, fault in FAULTS])
def test_a_fault_of_precision_is_caught(config, fault, name, monkeypatch):
    (check,) = [check for check in adapter_checks(config) if check.name == name]
    check()
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"rows differ|frames, \d+ in fp32"):
        check()
