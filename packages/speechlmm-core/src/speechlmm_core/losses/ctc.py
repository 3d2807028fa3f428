"""CTC against a vocabulary of any size.

Only the blank and the batch's own targets are scored frame by frame; the full vocabulary enters through its
log-sum-exp. That is exact: a path has one label a frame, so with the labels in use (S_t of the mass in frame t) the
loss is the one under the distribution renormalised to them plus the sum of -log S_t.

Shapes: B media, T frames, U target tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from speechlmm_core.features import length_mask
from speechlmm_core.losses.logsumexp import chunked_logsumexp

NEVER = -1e9
"""Logit of a label that is not in use; finite, since minus infinity gives undefined gradients."""


def ctc_loss(logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, *, blank: int) -> Tensor:
    """Negative log-likelihoods from logits over the whole vocabulary.

    Args:
        logits: (B, T, V).
        lengths: (B,) valid frames.
        targets: (B, U) label ids, padded with anything valid.
        target_lengths: (B,) valid targets; a row with 0 has no loss.
        blank: Id of the blank.

    Returns:
        (B,) fp32 (fp64 for fp64 logits); 0 for a row whose target does not fit into its frames.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = F.log_softmax(logits.to(wide), dim=2).transpose(0, 1)  # (T, B, V)
    used = target_lengths > 0
    loss = F.ctc_loss(
        log_probs,
        targets,
        torch.where(used, lengths, 0),
        target_lengths,
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(used, loss, 0)


def ctc_loss_restricted(
    hidden: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    weight: Tensor,
    blank: Tensor,
    blank_in_weight: bool,
    logsumexp: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """The same from hidden states, without the (B, T, V) logits.

    Args:
        hidden: (B, T, D), already scaled.
        lengths: (B,) valid frames.
        targets: (B, U) rows of `weight`.
        target_lengths: (B,) valid targets; a row with 0 has no loss.
        weight: (V, D) vectors of the labels.
        blank: (D,) vector of the blank.
        blank_in_weight: Whether the blank is a row of `weight` too (else it is one label more).
        logsumexp: (B, T) log-sum-exp of the logits of `weight`, where it is known; by default it is computed.
        chunk_size: Frames at a time for the log-sum-exp.

    Returns:
        (B,) fp32 (fp64 for fp64 inputs); 0 for a row whose target does not fit into its frames.
    """
    B, T, D = hidden.shape
    U = targets.shape[1]
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    # Equal tokens of a row share the first one's column, since CTC wants a blank between equal neighbours.
    first = (targets[:, None, :] == targets[:, :, None]).int().argmax(dim=2)  # (B, U)
    own = torch.arange(U, device=targets.device)[None]
    in_use = (first == own) & length_mask(target_lengths, U)  # (B, U)
    rows = torch.cat([blank.expand(B, 1, D), F.embedding(targets, weight)], dim=1)  # (B, 1+U, D)
    logits = torch.bmm(hidden, rows.to(hidden.dtype).transpose(1, 2)).to(wide)  # (B, T, 1+U)
    everything = logsumexp
    if everything is None:
        everything = chunked_logsumexp(hidden.reshape(B * T, D), weight, chunk_size=chunk_size).view(B, T)
    if not blank_in_weight:
        everything = torch.logaddexp(everything, logits[..., 0])
    logits = logits.masked_fill(~F.pad(in_use, (1, 0), value=True)[:, None], NEVER)
    missing = everything - torch.logsumexp(logits, dim=2)  # (B, T): -log of the mass on the labels in use
    loss = ctc_loss(logits, lengths, first + 1, target_lengths, blank=0)
    missing = torch.where(length_mask(lengths, T), missing, 0).sum(dim=1)  # (B,)
    return torch.where(fits(lengths, targets, target_lengths), loss + missing, 0)


def fits(lengths: Tensor, targets: Tensor, target_lengths: Tensor) -> Tensor:
    """(B,) bool: the target is not empty, and has a frame for each label and for a blank between equal neighbours."""
    U = targets.shape[1]
    repeats = (targets[:, 1:] == targets[:, :-1]) & length_mask(target_lengths - 1, max(U - 1, 0))  # (B, U-1)
    return (target_lengths > 0) & (lengths >= target_lengths + repeats.sum(dim=1))
