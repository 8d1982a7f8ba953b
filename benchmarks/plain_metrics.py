"""Implements J and F as the DAVIS definition reads, on whole frames: the peer of `eval.metrics`.

It is written for comparison with the definition; tests demand equal floats, a benchmark measures the difference in
speed.
"""

from __future__ import annotations

import cv2
import numpy as np


def region_similarity(pred: np.ndarray, gt: np.ndarray) -> float:
    """Returns |P ∩ G| / |P ∪ G|, nonzero = inside; 1 if the union is empty."""
    pred, gt = pred.astype(bool), gt.astype(bool)
    union = np.sum(pred | gt)
    if union == 0:
        return 1.0  # both empty
    return float(np.sum(pred & gt) / union)


def boundary_measure(pred: np.ndarray, gt: np.ndarray) -> float:
    """Returns the F score of boundary pixels, matched within a disk of 0.8 % of the diagonal."""
    radius = int(np.ceil(0.008 * np.linalg.norm(pred.shape)))
    pred_boundary, gt_boundary = boundary(pred), boundary(gt)
    pred_near = cv2.dilate(pred_boundary.astype(np.uint8), disk(radius))
    gt_near = cv2.dilate(gt_boundary.astype(np.uint8), disk(radius))
    pred_total, gt_total = np.sum(pred_boundary), np.sum(gt_boundary)
    if pred_total == 0 and gt_total == 0:
        precision, recall = 1.0, 1.0
    elif pred_total == 0:
        precision, recall = 1.0, 0.0
    elif gt_total == 0:
        precision, recall = 0.0, 1.0
    else:
        precision = float(np.sum(pred_boundary * gt_near) / pred_total)
        recall = float(np.sum(gt_boundary * pred_near) / gt_total)
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Returns (H, W) bool: the pixel differs from the one to its right, below it, or below right.

    The last row looks to the right only, the last column below only, and the last corner is never a boundary.
    """
    inside = mask.astype(bool)
    here, right, below, diagonal = inside[:-1, :-1], inside[:-1, 1:], inside[1:, :-1], inside[1:, 1:]
    edge = np.zeros_like(inside)
    edge[:-1, :-1] = (here ^ right) | (here ^ below) | (here ^ diagonal)
    edge[-1, :-1] = inside[-1, :-1] ^ inside[-1, 1:]
    edge[:-1, -1] = inside[:-1, -1] ^ inside[1:, -1]
    return edge


def disk(radius: int) -> np.ndarray:
    """Returns (2r + 1, 2r + 1) uint8: offsets with dx² + dy² ≤ r²."""
    offset = np.arange(-radius, radius + 1)
    return (offset[:, None] ** 2 + offset[None, :] ** 2 <= radius**2).astype(np.uint8)
