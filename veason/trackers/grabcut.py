"""GrabCut in the box, optical flow outwards: a tracker without weights, and an honest baseline on real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from veason import masks
from veason.trackers import checks
from veason.types import Box, MaskTrack, Size


class GrabCutTracker:
    name = "grabcut"

    def __init__(self, *, working_side: int = 480, iters=5, **p) -> None:
        self.working_side = working_side
        self.p = p
        self.iters = iters

    def encode(self, frames):
        out = []
        size = None
        for i, f in enumerate(frames):
            size = checks.check_frame(f, i, size)
            s = min(1.0, self.working_side / max(size))
            w = (max(1, round(size[1] * s)), max(1, round(size[0] * s)))
            out.append(cv2.resize(f, w, interpolation=cv2.INTER_AREA))
        return Enc(size, out, {})

    def track(self, enc, *, keyframe, boxes):
        objs = []
        h, w = enc.frames[0].shape[:2]
        for b in checks.clip_boxes(boxes, enc.size):
            res = [None] * len(enc.frames)
            sx, sy = w / enc.size[1], h / enc.size[0]
            x1, y1, x2, y2 = int(b[0] * sx), int(b[1] * sy), int(np.ceil((b[2] + 1) * sx)), int(np.ceil((b[3] + 1) * sy))
            m0, models0 = self.first(enc.frames[keyframe], (x1, y1, x2, y2))
            res[keyframe] = m0
            for d in (1, -1):
                m = m0
                models = models0
                t = keyframe + d
                while 0 <= t < len(enc.frames):
                    m, models = self.step(enc, t, t - d, m, models)
                    res[t] = m
                    t += d
            objs.append([cv2.resize(r.astype(np.float32), enc.size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5 for r in res])
        return objs

    def first(self, img, box):
        x1, y1, x2, y2 = box
        h, w = img.shape[:2]
        mx, my = max(8, int((x2 - x1) * self.p.get("pad", 0.5))), max(8, int((y2 - y1) * self.p.get("pad", 0.5)))
        X1, Y1, X2, Y2 = max(0, x1 - mx), max(0, y1 - my), min(w, x2 + mx), min(h, y2 + my)
        crop = np.ascontiguousarray(img[Y1:Y2, X1:X2])
        m = np.full(crop.shape[:2], cv2.GC_BGD, np.uint8)
        m[y1 - Y1 : y2 - Y1, x1 - X1 : x2 - X1] = cv2.GC_PR_BGD if self.p.get("ell") else cv2.GC_PR_FGD
        if e := self.p.get("ell"):
            gy, gx = np.mgrid[: m.shape[0], : m.shape[1]]
            r = ((gx + 0.5 - (x1 + x2) / 2 + X1) / ((x2 - x1) / 2)) ** 2 + ((gy + 0.5 - (y1 + y2) / 2 + Y1) / ((y2 - y1) / 2)) ** 2
            m[r <= e * e] = cv2.GC_PR_FGD
            m[r <= self.p.get("core", 0) ** 2] = cv2.GC_FGD
        bg, fg = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(crop, m, None, bg, fg, self.iters, cv2.GC_INIT_WITH_MASK)
        out = np.zeros((h, w), bool)
        out[Y1:Y2, X1:X2] = self.tidy(m & 1)
        return out, (bg, fg)

    def tidy(self, m):
        if self.p.get("fill"):
            c, _ = cv2.findContours(m, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            if c:
                big = max(map(cv2.contourArea, c))
                m = np.zeros_like(m)
                cv2.drawContours(m, [k for k in c if cv2.contourArea(k) >= 0.1 * big], -1, 1, cv2.FILLED)
        if r := self.p.get("close"):
            r = max(1, round(r * np.sqrt(m.sum())))
            k = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1,) * 2)
            m = cv2.copyMakeBorder(m, r, r, r, r, cv2.BORDER_REPLICATE)
            m = cv2.morphologyEx(cv2.morphologyEx(m, cv2.MORPH_CLOSE, k), cv2.MORPH_OPEN, k)[r:-r, r:-r]
        return m == 1

    def flow(self, enc, t, s):
        if (t, s) not in enc.flows:
            dis = cv2.DISOpticalFlow_create(self.p.get("preset", cv2.DISOPTICAL_FLOW_PRESET_MEDIUM))
            g = lambda i: cv2.cvtColor(enc.frames[i], cv2.COLOR_RGB2GRAY)
            enc.flows[(t, s)] = dis.calc(g(t), g(s), None)
        return enc.flows[(t, s)]

    def step(self, enc, t, s, m, models):
        fl = self.flow(enc, t, s)
        h, w = m.shape
        gx, gy = np.meshgrid(np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32))
        warped = cv2.remap(m.astype(np.float32), gx + fl[..., 0], gy + fl[..., 1], cv2.INTER_LINEAR) > 0.5
        if not warped.any():
            return warped, models
        if self.p.get("ext"):
            b = max(1, round(self.p["ext"] * np.sqrt(warped.sum())))
            k = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * b + 1,) * 2)
            ins = cv2.erode(warped.astype(np.uint8), k).astype(np.float32)
            if ins.any():
                n = 4 * b + 1
                wgt = cv2.blur(cv2.blur(ins, (n, n)), (n, n))[..., None]
                num = cv2.blur(cv2.blur(fl * ins[..., None], (n, n)), (n, n))
                f2 = np.where((ins[..., None] == 0) & (wgt > 1e-3), num / np.maximum(wgt, 1e-3), fl)
                warped = cv2.remap(m.astype(np.float32), gx + f2[..., 0], gy + f2[..., 1], cv2.INTER_LINEAR) > 0.5
                if not warped.any():
                    return warped, models
        if self.p.get("norefine"):
            return warped, models
        ys, xs = np.nonzero(warped)
        x1, x2, y1, y2 = xs.min(), xs.max() + 1, ys.min(), ys.max() + 1
        area = warped.sum()
        band = max(1, round(self.p.get("band", 0.06) * np.sqrt(area)))
        mx = my = max(8, int(0.5 * max(x2 - x1, y2 - y1)))
        X1, Y1, X2, Y2 = max(0, x1 - mx), max(0, y1 - my), min(w, x2 + mx), min(h, y2 + my)
        wc = warped[Y1:Y2, X1:X2].astype(np.uint8)
        k = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * band + 1,) * 2)
        sure, maybe = cv2.erode(wc, k), cv2.dilate(wc, k)
        gm = np.full(wc.shape, cv2.GC_BGD, np.uint8)
        gm[maybe > 0] = cv2.GC_PR_BGD
        gm[wc > 0] = cv2.GC_PR_FGD
        gm[sure > 0] = cv2.GC_FGD
        crop = np.ascontiguousarray(enc.frames[t][Y1:Y2, X1:X2])
        if self.p.get("keep"):
            bg, fg = models[0].copy(), models[1].copy()
            mode = cv2.GC_EVAL if self.p["keep"] == 1 else cv2.GC_EVAL_FREEZE_MODEL
            cv2.grabCut(crop, gm, None, bg, fg, self.p.get("it", 1), mode)
            models = (bg, fg)
        else:
            bg, fg = np.zeros((1, 65)), np.zeros((1, 65))
            cv2.setRNGSeed(0)
            cv2.grabCut(crop, gm, None, bg, fg, self.p.get("it", 1), cv2.GC_INIT_WITH_MASK)
        out = np.zeros((h, w), bool)
        out[Y1:Y2, X1:X2] = self.tidy(gm & 1)
        return out, models


@dataclass
class Enc:
    size: Size
    frames: list
    flows: dict
