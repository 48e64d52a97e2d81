#!/usr/bin/env python3
"""Makes tests/algos/data/loss_fixtures.json: fixtures of `temper loss` with the numbers they must give.

    python make_loss_fixtures.py OUT.json [--random N --out-dir DIR]

An implementation of docs/algorithms.md of its own, written loop by loop from the formulas and not from the C++: PyTorch in
f64 where gradients are wanted, plain Python elsewhere. --random N also writes N random cases over all settings to DIR as
single files (NNN.json, NNN.expected.json), for a longer comparison. Needs torch (any version with f64 autograd).
"""
import argparse
import json
import math
import os
import random

import torch

F64 = torch.float64

DEFAULTS = dict(
    preset="grpo", adv_estimator="grpo", scale_rewards="group", advantage_eps=1e-4, whiten_advantages=None, gamma=1.0,
    lam=1.0, gae_skip_masked=True, filter_groups=False, overlong_buffer=dict(len=0, penalty_factor=1.0),
    mask_truncated_completions=False, policy_loss="clip", loss_agg_mode="seq-mean-token-mean", clip_ratio_low=0.2,
    clip_ratio_high=0.2, clip_ratio_c=3.0, cispo_bound="relative", sapo_tau_pos=1.0, sapo_tau_neg=1.05,
    clip_cov_ratio=0.0002, clip_cov_lb=1.0, clip_cov_ub=5.0, kl_cov_ratio=0.0002, kl_cov_coef=0.1, kl_coef=0.0,
    kl_estimator="k3", kl_clamp=False, kl_placement="loss", kl_ctrl=dict(type="fixed", target=0.1, horizon=10000.0),
    entropy_coef=0.0, rollout_is="none", rollout_is_mode="truncate", rollout_is_max=2.0, rollout_is_min=0.0,
    rollout_rs={}, rollout_rs_denominator="kept", value_clip=0.5, vf_coef=1.0, distill_coef=0.0, distill_discount=0.0,
    distill_loss="none", distill_loss_coef=1.0, distill_beta=0.5, distill_temperature=1.0, distill_top_k=0, dpo_beta=0.1,
    label_smoothing=0.0)

TM = dict(loss_agg_mode="token-mean")
IN_REWARD = dict(loss_agg_mode="token-mean", kl_placement="reward", kl_estimator="k1")
PRESETS = {
    "grpo": {},
    "dapo": dict(TM, clip_ratio_high=0.28, filter_groups=True),
    "dr_grpo": dict(scale_rewards="none", loss_agg_mode="seq-mean-token-sum-norm"),
    "gspo": dict(policy_loss="gspo", clip_ratio_low=3e-4, clip_ratio_high=4e-4),
    "cispo": dict(TM, policy_loss="cispo", clip_ratio_low=10.0, clip_ratio_high=0.2),
    "sapo": dict(policy_loss="sapo"),
    "gmpo": dict(policy_loss="gmpo", clip_ratio_low=0.4, clip_ratio_high=0.4),
    "rloo": dict(IN_REWARD, adv_estimator="rloo"),
    "remax": dict(IN_REWARD, adv_estimator="remax"),
    "reinforce_plus_plus": dict(IN_REWARD, adv_estimator="reinforce_plus_plus"),
    "reinforce_plus_plus_baseline": dict(TM, adv_estimator="reinforce_plus_plus_baseline", kl_estimator="k2"),
    "opo": dict(TM, adv_estimator="opo"),
    "gdpo": dict(TM, adv_estimator="gdpo"),
    "gpg": dict(TM, adv_estimator="gpg", policy_loss="reinforce"),
    "ppo": dict(IN_REWARD, adv_estimator="gae"),
    "distill": dict(TM, adv_estimator="none", distill_coef=1.0),
    "gkd": dict(TM, adv_estimator="none", policy_loss="none", distill_loss="jsd"),
    "sft": dict(TM, adv_estimator="none", policy_loss="sft"),
    "dpo": dict(adv_estimator="none", policy_loss="dpo"),
    "reward_model": dict(adv_estimator="none", policy_loss="reward_model"),
}
RATIO = ("clip", "gspo", "cispo", "sapo", "gmpo", "clip_cov", "kl_cov", "dppo_tv")


def settings_of(given):
    a = json.loads(json.dumps(DEFAULTS))
    a.update(PRESETS[given.get("preset", "grpo")])
    for k, v in given.items():
        if k in ("overlong_buffer", "kl_ctrl"):
            a[k].update(v)
        else:
            a[k] = v
    if a["whiten_advantages"] is None:
        a["whiten_advantages"] = a["adv_estimator"] in ("gae", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo")
    return a


def std(xs):
    if len(xs) < 2:
        return 0.0
    m = sum(xs) / len(xs)
    return math.sqrt(sum((x - m) ** 2 for x in xs) / (len(xs) - 1))


def mean(xs):
    return sum(xs) / len(xs) if xs else 0.0


def t(x):
    return torch.tensor(x, dtype=F64)


def kl_value(d, a):
    """Value and derivative of a tensor d, by the table of 5.2."""
    name = a["kl_estimator"]
    base = name.rstrip("+")
    if base == "k1":
        v, g = d, torch.ones_like(d)
    elif base == "abs":
        v, g = d.abs(), torch.sign(d)
    elif base == "k2":
        v, g = d * d / 2, d
    elif not a["kl_clamp"]:
        v, g = torch.exp(-d) + d - 1, 1 - torch.exp(-d)
    else:
        x = torch.clamp(-d, -20, 20)
        raw = torch.exp(x) - x - 1
        v = torch.clamp(raw, max=10)
        g = torch.where((raw > 10) | (x != -d), torch.zeros_like(d), 1 - torch.exp(-d))
    if name.endswith("+"):
        g = d
    return v.detach(), g.detach()


def kl_term(d, a):
    v, g = kl_value(d, a)
    return v + g * (d - d.detach())


def hard_clamp(x, lo, hi):
    """Clamp with derivative 0 where a bound acts and 1 on it."""
    keep = ((x >= lo) & (x <= hi)).detach()
    return torch.where(keep, x, torch.clamp(x.detach(), lo, hi))


def evaluate(fx):
    a = settings_of(fx.get("algo", {}))
    max_len = fx.get("rollout", {}).get("max_completion_length")
    reward_cfg = fx.get("reward", {})
    groups = fx["groups"]
    comps, gidx = [], []
    for gi, g in enumerate(groups):
        for c in g["completions"]:
            comps.append(c)
            gidx.append(gi)
    n_all = len(comps)
    T = [len(c["mask"]) for c in comps]

    # 5.1
    weights = reward_cfg.get("weights")
    K = len(comps[0]["rewards"]) if "rewards" in comps[0] else 0
    if weights is None:
        weights = [1.0] * K
    has_reward = any(k in comps[0] for k in ("reward", "rewards", "token_rewards"))
    r = []
    for c in comps:
        if "reward" in c:
            r.append(c["reward"])
        elif "rewards" in c:
            r.append(sum(w * x for w, x in zip(weights, c["rewards"])))
        elif "token_rewards" in c:
            r.append(sum(m * x for m, x in zip(c["mask"], c["token_rewards"])))
        else:
            r.append(0.0)
    members = [[i for i in range(n_all) if gidx[i] == gi] for gi in range(len(groups))]
    dropped = set()
    if a["filter_groups"]:
        for gi, mem in enumerate(members):
            if len(mem) >= 2 and max(r[i] for i in mem) == min(r[i] for i in mem):
                dropped.add(gi)
    stay = [i for i in range(n_all) if gidx[i] not in dropped]
    B = len(stay)
    m = []
    for i, c in enumerate(comps):
        gone = i not in stay or (a["mask_truncated_completions"] and c.get("finish_reason", "stop") == "length")
        m.append([0] * T[i] if gone else list(c["mask"]))
    L = [sum(x) for x in m]
    N = sum(L)
    last = [max([k for k in range(T[i]) if m[i][k]], default=None) for i in range(n_all)]
    ob = a["overlong_buffer"]
    p = [min(0.0, -(T[i] - (max_len - ob["len"])) / ob["len"] * ob["penalty_factor"]) if ob["len"] > 0 else 0.0
         for i in range(n_all)]
    rp = [r[i] + p[i] for i in range(n_all)]
    s = list(rp)
    R = []
    for i, c in enumerate(comps):
        if "token_rewards" in c:
            row = [mm * x for mm, x in zip(m[i], c["token_rewards"])]
            if last[i] is not None:
                row[last[i]] += p[i]
        else:
            row = [0.0] * T[i]
            if last[i] is not None:
                row[last[i]] = s[i]
        R.append(row)

    metrics = {}
    preference = a["policy_loss"] in ("dpo", "ipo", "reward_model")
    has_ref = all("ref_logprobs" in c for c in comps)
    has_old = all("old_logprobs" in c for c in comps)
    has_behavior = all("behavior_logprobs" in c for c in comps)
    has_policy = all("policy_logprobs" in c for c in comps)
    kl_current = None
    kl_out = 0.0
    if has_ref and has_old and a["kl_placement"] == "reward" and not preference:
        total, per = 0.0, 0.0
        for i in stay:
            c = comps[i]
            k = kl_value(t(c["old_logprobs"]) - t(c["ref_logprobs"]), a)[0].tolist()
            k = [x if mm else 0.0 for x, mm in zip(k, m[i])]
            for j in range(T[i]):
                R[i][j] -= a["kl_coef"] * k[j]
            s[i] -= a["kl_coef"] * sum(k)
            total += sum(k)
            per += sum(k) / max(L[i], 1)
        metrics["kl"] = total / N if N else 0.0
        kl_current = per / B if B else 0.0
        kl_out = kl_current

    # 5.3
    est = a["adv_estimator"]
    A = [[0.0] * T[i] for i in range(n_all)]
    ret = None

    def normalise(values):
        out = [0.0] * n_all
        stay_values = [values[i] for i in stay]
        bstd = std(stay_values) if len(stay_values) > 1 else 1.0
        for gi, mem in enumerate(members):
            if gi in dropped:
                continue
            v = [values[i] for i in mem]
            if len(v) >= 2 and max(v) == min(v):
                continue
            mu = mean(v) if len(v) > 1 else 0.0
            D = {"none": 1.0, "group": (std(v) if len(v) > 1 else 1.0) + a["advantage_eps"],
                 "batch": bstd + a["advantage_eps"]}[a["scale_rewards"]]
            for i in mem:
                out[i] = (values[i] - mu) / D
        return out

    per_completion = None
    if est == "grpo":
        per_completion = normalise(s)
    elif est == "gdpo":
        per_completion = [0.0] * n_all
        for k in range(K):
            for i, x in enumerate(normalise([c["rewards"][k] for c in comps])):
                per_completion[i] += weights[k] * x
    elif est in ("rloo", "reinforce_plus_plus_baseline", "opo", "gpg", "grpo_passk"):
        per_completion = [0.0] * n_all
        nonzero = sum(1 for i in stay if s[i] != 0)
        bstd = std([s[i] for i in stay]) if B > 1 else 1.0
        for gi, mem in enumerate(members):
            if gi in dropped:
                continue
            v = [s[i] for i in mem]
            n = len(v)
            if n >= 2 and max(v) == min(v):
                continue
            mu = mean(v) if n > 1 else 0.0
            if est == "opo":
                tot = sum(L[i] for i in mem)
                base = 0.0 if n == 1 or tot == 0 else sum(L[i] * s[i] for i in mem) / tot
            for i in mem:
                if est == "rloo":
                    per_completion[i] = (s[i] - mu) * n / (n - 1) if n > 1 else s[i]
                elif est == "reinforce_plus_plus_baseline":
                    per_completion[i] = s[i] - mu
                elif est == "opo":
                    per_completion[i] = s[i] - base
                elif est == "gpg":
                    per_completion[i] = (s[i] - mu) * B / max(1, nonzero)
            if est == "grpo_passk":
                D = {"none": 1.0, "group": std(v) + a["advantage_eps"], "batch": bstd + a["advantage_eps"]}[a["scale_rewards"]]
                order = sorted(mem, key=lambda i: -s[i])
                per_completion[order[0]] = (s[order[0]] - s[order[1]]) / D
    if per_completion is not None:
        A = [[per_completion[i] * mm for mm in m[i]] for i in range(n_all)]
    if est in ("reinforce_plus_plus", "remax"):
        gamma = a["gamma"] if est == "reinforce_plus_plus" else 1.0
        ret = []
        for i in range(n_all):
            row, G = [0.0] * T[i], 0.0
            for j in reversed(range(T[i])):
                if m[i][j]:
                    G = R[i][j] + gamma * G
                    row[j] = G
                    A[i][j] = G - (groups[gidx[i]]["baseline_reward"] if est == "remax" else 0.0)
            ret.append(row)
    old_values = [c.get("old_values", c.get("values")) for c in comps]
    if est == "gae":
        ret = []
        for i in range(n_all):
            row, nv, g = [0.0] * T[i], 0.0, 0.0
            V = old_values[i]
            for j in reversed(range(T[i])):
                if m[i][j]:
                    g = R[i][j] + a["gamma"] * nv - V[j] + a["gamma"] * a["lam"] * g
                    A[i][j] = g
                    row[j] = g + V[j]
                    nv = V[j]
                elif not a["gae_skip_masked"]:
                    g = a["gamma"] * nv + a["gamma"] * a["lam"] * g
                    nv = 0.0
            ret.append(row)
    if a["whiten_advantages"] and N >= 2:
        flat = [A[i][j] for i in range(n_all) for j in range(T[i]) if m[i][j]]
        mu = mean(flat)
        var = sum((x - mu) ** 2 for x in flat) / (N - 1)
        A = [[m[i][j] * (A[i][j] - mu) / math.sqrt(var + 1e-8) for j in range(T[i])] for i in range(n_all)]
    if all("teacher_logprobs" in c for c in comps) and has_old:
        diff = 0.0
        for i, c in enumerate(comps):
            x = [mm * (o - te) for mm, o, te in zip(m[i], c["old_logprobs"], c["teacher_logprobs"])]
            diff += sum(x)
            for j in range(T[i]):
                if m[i][j]:
                    A[i][j] += sum(a["distill_discount"] ** (u - j) * -a["distill_coef"] * x[u] for u in range(j, T[i]))
        metrics["teacher_kl"] = diff / N if N else 0.0

    # 5.4
    w = [[1.0] * T[i] for i in range(n_all)]
    kept = [[1] * T[i] for i in range(n_all)]
    if has_old and has_behavior:
        y = [[o - b for o, b in zip(c["old_logprobs"], c["behavior_logprobs"])] for c in comps]
        gaps = [abs(y[i][j]) for i in range(n_all) for j in range(T[i]) if m[i][j]]
        metrics["sampling/sampling_logp_difference/mean"] = mean(gaps)
        metrics["sampling/sampling_logp_difference/max"] = max(gaps, default=0.0)
        if a["rollout_is"] != "none":
            final = []
            for i in range(n_all):
                for j in range(T[i]):
                    z = y[i][j] if a["rollout_is"] == "token" else sum(yy * mm for yy, mm in zip(y[i], m[i]))
                    v = math.exp(max(-20.0, min(20.0, z)))
                    if a["rollout_is_mode"] == "truncate":
                        v = max(a["rollout_is_min"], min(a["rollout_is_max"], v))
                    elif not a["rollout_is_min"] <= v <= a["rollout_is_max"]:
                        v = 0.0
                    w[i][j] = v
                    if a["rollout_is"] == "token" and m[i][j]:
                        final.append(v)
                if a["rollout_is"] == "sequence" and L[i]:
                    final.append(w[i][0])
            metrics["sampling/importance_sampling_ratio/min"] = min(final, default=0.0)
            metrics["sampling/importance_sampling_ratio/mean"] = mean(final)
            metrics["sampling/importance_sampling_ratio/max"] = max(final, default=0.0)
        for test, bound in a["rollout_rs"].items():
            scope, form = test.rsplit("_", 1)
            for i in range(n_all):
                ks = []
                for j in range(T[i]):
                    x = max(-20.0, min(20.0, y[i][j]))
                    ks.append({"k1": -x, "k2": x * x / 2, "k3": math.exp(x) - 1 - x}[form])
                inside = [k for k, mm in zip(ks, m[i]) if mm]
                for j in range(T[i]):
                    if scope == "token":
                        k = ks[j]
                    elif not inside:
                        k = 0.0
                    else:
                        k = {"seq_sum": sum, "seq_mean": mean, "seq_max": max}[scope](inside)
                    if form == "k1":
                        lo, hi = bound if isinstance(bound, list) else (1 / bound, bound)
                        ok = (lo == 0 or math.log(lo) <= k) and k <= math.log(hi)
                    else:
                        ok = k <= bound
                    kept[i][j] &= int(ok)
    c_mask = [[mm & kk for mm, kk in zip(m[i], kept[i])] for i in range(n_all)]
    Nc = sum(map(sum, c_mask))
    if a["rollout_rs"]:
        metrics["sampling/rejected_ratio"] = 1 - Nc / N if N else 0.0

    # 5.5
    def agg(xs, mask, denominator_mask):
        """xs: tensor a completion."""
        total = torch.zeros((), dtype=F64)
        n_tok = max(1, sum(map(sum, denominator_mask)))
        for i in range(n_all):
            x = torch.where(t(mask[i]) > 0, xs[i], torch.zeros((), dtype=F64)).sum()
            mode = a["loss_agg_mode"]
            if mode == "token-mean":
                total = total + x / n_tok
            elif mode == "token-sum":
                total = total + x
            elif mode == "seq-mean-token-sum":
                total = total + x / max(1, B)
            elif mode == "seq-mean-token-sum-norm":
                total = total + x / max(1, B) / max_len
            else:
                total = total + x / max(1, sum(denominator_mask[i])) / max(1, B)
        return total

    denominator = m if a["rollout_rs_denominator"] == "all" else c_mask
    in_c = [t(x) > 0 for x in c_mask]

    def token_mean(xs, mask=None):
        mask = c_mask if mask is None else mask
        return mean([float(xs[i][j]) for i in range(n_all) for j in range(T[i]) if mask[i][j]])

    # 5.6
    policy = [t(c["policy_logprobs"]).requires_grad_(True) for c in comps] if has_policy else None
    values = [t(c["values"]).requires_grad_(True) for c in comps] if all("values" in c for c in comps) else None
    logits = [t(c["policy_logits"]).requires_grad_(True) for c in comps] if all("policy_logits" in c for c in comps) else None
    adv = [t(x) for x in A]
    loss_name = a["policy_loss"]
    lo, hi, C = a["clip_ratio_low"], a["clip_ratio_high"], a["clip_ratio_c"]
    policy_loss = torch.zeros((), dtype=F64)
    low = [torch.zeros(n) for n in T]
    high = [torch.zeros(n) for n in T]
    dual = [torch.zeros(n) for n in T]

    def surrogate(ratio, Ai):
        first, second = -Ai * ratio, -Ai * hard_clamp(ratio, 1 - lo, 1 + hi)
        return torch.where(second > first, second, first), (ratio < 1 - lo) & (Ai < 0), (ratio > 1 + hi) & (Ai > 0)

    if loss_name in RATIO or loss_name in ("reinforce", "sft"):
        per_token = []
        if loss_name in ("clip_cov", "kl_cov"):
            spots = [(i, j) for i in range(n_all) for j in range(T[i]) if c_mask[i][j]]
            mA = mean([A[i][j] for i, j in spots])
            mp = mean([comps[i]["policy_logprobs"][j] for i, j in spots])
            cov = {(i, j): (A[i][j] - mA) * (comps[i]["policy_logprobs"][j] - mp) for i, j in spots}
            if loss_name == "clip_cov":
                cand = []
                for i, j in spots:
                    ratio = math.exp(max(-20, min(20, comps[i]["policy_logprobs"][j] - comps[i]["old_logprobs"][j])))
                    unclipped = not (-A[i][j] * max(1 - lo, min(1 + hi, ratio)) > -A[i][j] * ratio)
                    if unclipped and a["clip_cov_lb"] < cov[i, j] < a["clip_cov_ub"]:
                        cand.append((i, j))
                take = max(1, math.floor(a["clip_cov_ratio"] * len(spots)))
            else:
                cand = spots
                take = max(1, math.floor(a["kl_cov_ratio"] * len(spots))) if a["kl_cov_ratio"] > 0 else 0
            selected = set(sorted(cand, key=lambda ij: (-cov[ij], ij))[:take])
            metrics["clip_ratio/cov_mean"] = len(selected) / Nc if Nc else 0.0
        for i, c in enumerate(comps):
            pol, Ai = policy[i], adv[i]
            if loss_name == "reinforce":
                per_token.append(-Ai * pol)
                continue
            if loss_name == "sft":
                per_token.append(-pol)
                continue
            zero = torch.zeros((), dtype=F64)
            pol = torch.where(in_c[i], pol, zero)
            old = torch.where(in_c[i], t(c["old_logprobs"]), zero)
            Ai = torch.where(in_c[i], Ai, zero)
            x = pol - old
            lr = hard_clamp(x, -20.0, 20.0)
            rho = torch.exp(lr)
            n = max(1, sum(c_mask[i]))
            if loss_name == "clip":
                M, low[i], high[i] = surrogate(rho, Ai)
                if C > 0:
                    dual[i] = (Ai < 0) & (M > -Ai * C)
                    M = torch.where(dual[i], -Ai * C, M)
                per_token.append(M)
            elif loss_name == "gspo":
                seq = x.detach().sum() / n
                z = pol - pol.detach() + seq
                z = torch.where((z <= 10).detach(), z, torch.full_like(z, 10.0).detach())
                M, low[i], high[i] = surrogate(torch.exp(z), Ai)
                per_token.append(M)
            elif loss_name == "cispo":
                q = rho.detach()
                if a["cispo_bound"] == "absolute":
                    wt = torch.clamp(q, max=hi)
                    high[i] = q > hi
                else:
                    wt = torch.clamp(q, 1 - lo, 1 + hi)
                    low[i], high[i] = q < 1 - lo, q > 1 + hi
                per_token.append(-wt * Ai * pol)
            elif loss_name == "sapo":
                tau = torch.where(Ai > 0, t(a["sapo_tau_pos"]), t(a["sapo_tau_neg"]))
                per_token.append(-Ai * torch.sigmoid(tau * (rho - 1)) * 4 / tau)
            elif loss_name == "gmpo":
                up = torch.where((x <= hi).detach(), x, t(hi))
                down = torch.where((x >= -lo).detach(), x, t(-lo))
                z = torch.where(Ai > 0, up, torch.where(Ai < 0, down, zero))
                low[i], high[i] = (x < -lo) & (Ai < 0), (x > hi) & (Ai > 0)
                per_token.append((-(Ai.sum() / n) * torch.exp(z.sum() / n)).expand(T[i]))
            elif loss_name == "clip_cov":
                M, low[i], high[i] = surrogate(rho, Ai)
                pick = torch.tensor([(i, j) in selected for j in range(T[i])])
                per_token.append(torch.where(pick, zero, M))
            elif loss_name == "kl_cov":
                pick = torch.tensor([(i, j) in selected for j in range(T[i])])
                per_token.append(-Ai * rho + torch.where(pick, a["kl_cov_coef"] * lr.abs(), zero))
            elif loss_name == "dppo_tv":
                q = rho.detach()
                change = torch.exp(pol.detach()) - torch.exp(old)
                valid = torch.where(Ai > 0, change <= hi, change >= -lo)
                wt = torch.clamp(q, max=C) if C > 0 else q
                per_token.append(torch.where(valid, -Ai * wt * pol, zero))
                low[i], high[i] = (Ai <= 0) & ~valid, (Ai > 0) & ~valid
                if C > 0:
                    dual[i] = (q > C) & valid
        if loss_name != "sft":
            per_token = [t(w[i]) * per_token[i] for i in range(n_all)]
        policy_loss = agg(per_token, c_mask, denominator)
        if loss_name in RATIO:
            metrics["ppo_kl"] = token_mean([-(policy[i].detach() - t(c["old_logprobs"])).clamp(-20, 20)
                                            for i, c in enumerate(comps)])
            metrics["clip_ratio/low_mean"] = token_mean(low)
            metrics["clip_ratio/high_mean"] = token_mean(high)
            metrics["clip_ratio/region_mean"] = token_mean(low) + token_mean(high)
            metrics["clip_ratio/dual_mean"] = token_mean(dual)
    elif preference:
        live = [mem for gi, mem in enumerate(members) if gi not in dropped]
        chosen_r, rejected_r, terms = [], [], []
        for mem in live:
            if loss_name == "reward_model":
                vc, vr = values[mem[0]][last[mem[0]]], values[mem[1]][last[mem[1]]]
                terms.append(-torch.nn.functional.logsigmoid(vc - vr - groups[gidx[mem[0]]].get("margin", 0.0)))
                chosen_r.append(float(vc.detach()))
                rejected_r.append(float(vr.detach()))
                continue
            sums = []
            for i in mem:
                d = torch.where(t(m[i]) > 0, policy[i] - t(comps[i]["ref_logprobs"]), torch.zeros((), dtype=F64)).sum()
                sums.append(d / max(1, L[i]) if loss_name == "ipo" else d)
            h = sums[0] - sums[1]
            beta, eps = a["dpo_beta"], a["label_smoothing"]
            if loss_name == "dpo":
                ls = torch.nn.functional.logsigmoid
                terms.append(-(1 - eps) * ls(beta * h) - eps * ls(-beta * h))
            else:
                terms.append((h - 1 / (2 * beta)) ** 2)
            chosen_r.append(float(beta * sums[0].detach()))
            rejected_r.append(float(beta * sums[1].detach()))
        policy_loss = sum(terms) / max(1, len(live)) if terms else policy_loss
        metrics["rewards/chosen"] = mean(chosen_r)
        metrics["rewards/rejected"] = mean(rejected_r)
        metrics["rewards/margins"] = mean([x - y for x, y in zip(chosen_r, rejected_r)])
        metrics["rewards/accuracies"] = mean([float(x > y) for x, y in zip(chosen_r, rejected_r)])

    # 5.7
    loss = policy_loss
    if has_ref and has_policy and a["kl_placement"] == "loss" and not preference:
        ds = [policy[i] - t(c["ref_logprobs"]) for i, c in enumerate(comps)]
        ks = [kl_term(torch.where(in_c[i], d, torch.zeros((), dtype=F64)), a) for i, d in enumerate(ds)]
        term = agg(ks, c_mask, denominator)
        kl_out = float(term.detach())
        if a["kl_coef"]:
            loss = loss + a["kl_coef"] * term
        metrics["kl"] = token_mean([k.detach() for k in ks])
        per = 0.0
        for i in stay:
            k = kl_value(ds[i].detach(), a)[0].tolist()
            per += sum(x for x, mm in zip(k, m[i]) if mm) / max(1, L[i])
        kl_current = per / B if B else 0.0
    if kl_current is not None:
        metrics["kl_coef"] = a["kl_coef"]
        ctrl = a["kl_ctrl"]
        nxt = a["kl_coef"]
        if ctrl["type"] == "adaptive":
            nxt *= 1 + max(-0.2, min(0.2, kl_current / ctrl["target"] - 1)) * B / ctrl["horizon"]
        metrics["kl_coef_next"] = nxt
    if all("entropies" in c for c in comps):
        es = [t(c["entropies"]) for c in comps]
        loss = loss - a["entropy_coef"] * agg(es, c_mask, denominator)
        metrics["entropy"] = token_mean(es)
    value_loss = torch.zeros((), dtype=F64)
    if est == "gae":
        per_token, flags = [], []
        for i in range(n_all):
            V, Rt, Vo = values[i], t(ret[i]), t(old_values[i])
            plain = (V - Rt) ** 2
            if a["value_clip"] > 0:
                lo_v, hi_v = Vo - a["value_clip"], Vo + a["value_clip"]
                inside = ((V >= lo_v) & (V <= hi_v)).detach()
                Vc = torch.where(inside, V, torch.maximum(torch.minimum(V.detach(), hi_v), lo_v))
                other = (Vc - Rt) ** 2
                flags.append((other > plain).detach())
                per_token.append(0.5 * torch.where(flags[-1], other, plain))
            else:
                flags.append(torch.zeros(T[i]))
                per_token.append(0.5 * plain)
        value_loss = agg(per_token, m, m)
        loss = loss + a["vf_coef"] * value_loss
        metrics["value_clip_ratio"] = token_mean(flags, m)
        if N >= 2:
            rs = [ret[i][j] for i in range(n_all) for j in range(T[i]) if m[i][j]]
            es = [ret[i][j] - old_values[i][j] for i in range(n_all) for j in range(T[i]) if m[i][j]]
            metrics["explained_variance"] = 1 - std(es) ** 2 / (std(rs) ** 2 + 1e-5)

    # 5.8
    distill = None
    if a["distill_loss"] != "none":
        per_token = []
        for i, c in enumerate(comps):
            S = torch.softmax(logits[i] / a["distill_temperature"], -1)
            P = torch.softmax(t(c["teacher_logits"]) / a["distill_temperature"], -1)
            if a["distill_loss"] == "forward_kl":
                terms = P * (P.log() - S.log())
                k = a["distill_top_k"]
                if k:
                    top = torch.argsort(-P, dim=-1)[:, :k]
                    d = terms.gather(-1, top).sum(-1)
                    d = torch.where((d < 0).detach(), torch.zeros((), dtype=F64), d)
                else:
                    d = terms.sum(-1)
            elif a["distill_loss"] == "reverse_kl":
                d = (S * (S.log() - P.log())).sum(-1)
            else:
                b = a["distill_beta"]
                M = (1 - b) * S + b * P
                d = b * (P * (P.log() - M.log())).sum(-1) + (1 - b) * (S * (S.log() - M.log())).sum(-1)
            per_token.append(d)
        distill = agg(per_token, c_mask, denominator)
        loss = loss + a["distill_loss_coef"] * distill
        metrics["distill_loss"] = token_mean([d.detach() for d in per_token])

    # metrics of rewards
    if has_reward:
        metrics["reward"] = mean(rp)
        metrics["reward_std"] = std(rp)
        names = reward_cfg.get("functions", [str(k) for k in range(K)])
        for k in range(K):
            metrics[f"rewards/{names[k]}/mean"] = mean([c["rewards"][k] for c in comps])
            metrics[f"rewards/{names[k]}/std"] = std([c["rewards"][k] for c in comps])
        metrics["frac_reward_zero_std"] = mean(
            [float(max(rp[i] for i in mem) == min(rp[i] for i in mem)) for mem in members])
    if a["filter_groups"]:
        metrics["training/groups_filtered"] = len(dropped)

    leaves = [x for xs in (policy, values, logits) if xs for x in xs]
    if loss.requires_grad:
        loss.backward()

    def nested(rows):
        return [[rows[i] for i in mem] for mem in members]

    def grads(xs):
        return nested([(x.grad if x.grad is not None else torch.zeros_like(x)).tolist() for x in xs])

    out = dict(loss=float(loss.detach()), policy_loss=float(policy_loss.detach()), value_loss=float(value_loss.detach()),
               kl=kl_out, advantages=nested(A), returns=nested(ret) if ret else None,
               grad_policy_logprobs=grads(policy) if policy else None,
               grad_values=grads(values) if est == "gae" or loss_name == "reward_model" else None)
    if distill is not None:
        out["distill_loss"] = float(distill.detach())
        out["grad_policy_logits"] = grads(logits)
    out["metrics"] = metrics
    return out


# ---- cases ----

def random_fixture(rng, algo, *, groups=3, kind="reward", ties=False, holes=True, ones=False, pairs=False, truncated=0.2,
                   all_masked=0.1, far=0.05, rewards_k=3, full=True, sizes=(1, 5)):
    a = settings_of(algo)

    def logprob():
        return round(-abs(rng.gauss(0.9, 0.8)) - 0.01, 4)

    fx = {"algo": algo, "groups": []}
    need_pairs = pairs or a["policy_loss"] in ("dpo", "ipo", "reward_model")
    V = rng.randint(3, 6)
    for _ in range(groups):
        n = 2 if need_pairs else rng.randint(max(2, sizes[0]) if a["adv_estimator"] == "grpo_passk" else sizes[0], sizes[1])
        g = {"completions": []}
        if a["adv_estimator"] == "remax" or rng.random() < 0.1:
            g["baseline_reward"] = round(rng.gauss(0, 1), 3)
        if need_pairs and rng.random() < 0.5:
            g["margin"] = round(rng.random(), 3)
        tie = ties and rng.random() < 0.5
        value = [round(rng.gauss(0, 1), 3) for _ in range(rewards_k)]
        for _ in range(n):
            T = rng.randint(1, 7)
            mask = [1 if ones or not holes or rng.random() < 0.75 else 0 for _ in range(T)]
            if a["policy_loss"] == "reward_model":
                mask[rng.randrange(T)] = 1
            elif rng.random() < all_masked:
                mask = [0] * T
            c = {"mask": mask}
            if kind == "reward":
                c["reward"] = value[0] if tie else rng.choice([0.0, 1.0, round(rng.gauss(0, 1), 3)])
            elif kind == "rewards":
                c["rewards"] = value if tie else [round(rng.gauss(0, 1), 3) for _ in range(rewards_k)]
            elif kind == "token_rewards":
                c["token_rewards"] = [round(rng.gauss(0, 0.5), 3) for _ in range(T)]
            if a["policy_loss"] != "reward_model" and rng.random() < truncated:
                c["finish_reason"] = "length"
            pol = [logprob() for _ in range(T)]

            def near(base, spread):
                return [round(min(-0.001, b + rng.gauss(0, spread) + (rng.choice([-30, 25]) if rng.random() < far else 0)), 4)
                        for b in base]
            c["policy_logprobs"] = pol
            c["old_logprobs"] = near(pol, 0.3)
            if full or a["rollout_is"] != "none" or a["rollout_rs"]:
                c["behavior_logprobs"] = near(c["old_logprobs"], 0.2)
            if full or a["kl_coef"] or need_pairs:
                c["ref_logprobs"] = [round(b + rng.gauss(0, 0.4), 4) for b in pol]
            if full or a["distill_coef"]:
                c["teacher_logprobs"] = near(pol, 0.5)
            if full or a["entropy_coef"]:
                c["entropies"] = [round(rng.random() * 2, 4) for _ in range(T)]
            if full or a["adv_estimator"] == "gae" or a["policy_loss"] == "reward_model":
                c["values"] = [round(rng.gauss(0, 1), 4) for _ in range(T)]
                c["old_values"] = [round(v + rng.gauss(0, 0.5), 4) for v in c["values"]]
            if a["distill_loss"] != "none":
                c["policy_logits"] = [[round(rng.gauss(0, 1.5), 4) for _ in range(V)] for _ in range(T)]
                c["teacher_logits"] = [[round(rng.gauss(0, 1.5), 4) for _ in range(V)] for _ in range(T)]
            g["completions"].append(c)
        fx["groups"].append(g)
    if kind == "rewards" and rng.random() < 0.7:
        fx["reward"] = {"functions": ["accuracy", "format", "length"][:rewards_k],
                        "weights": [round(rng.uniform(0.2, 2), 2) for _ in range(rewards_k)]}
    if a["loss_agg_mode"] == "seq-mean-token-sum-norm" or a["overlong_buffer"]["len"] > 0:
        fx["rollout"] = {"max_completion_length": rng.randint(6, 9)}
    return fx


def named_cases():
    """(name, algo, options) of the committed file: every estimator, loss, aggregation, estimator of KL and correction."""
    cases = []
    for preset in PRESETS:
        extra = {}
        if preset == "gdpo":
            extra = dict(kind="rewards")
        cases.append((f"preset_{preset}", dict(preset=preset), extra))
    for est in ("grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "opo", "gpg", "grpo_passk", "gae"):
        cases.append((f"{est}_ties", dict(adv_estimator=est), dict(ties=True, groups=4)))
        cases.append((f"{est}_kl_in_reward", dict(adv_estimator=est, kl_coef=0.1, kl_placement="reward", kl_estimator="k3+"), {}))
        cases.append((f"{est}_token_rewards", dict(adv_estimator=est), dict(kind="token_rewards")))
    for scale in ("group", "batch", "none"):
        cases.append((f"scale_{scale}", dict(scale_rewards=scale), dict(ties=True)))
        cases.append((f"gdpo_{scale}", dict(adv_estimator="gdpo", scale_rewards=scale), dict(kind="rewards")))
        cases.append((f"passk_{scale}", dict(adv_estimator="grpo_passk", scale_rewards=scale), {}))
    cases.append(("gae_through_masked", dict(preset="ppo", gae_skip_masked=False, gamma=0.9, lam=0.8), {}))
    cases.append(("gae_discounts", dict(preset="ppo", gamma=0.97, lam=0.9, value_clip=0.0, vf_coef=0.3), {}))
    cases.append(("whitened_grpo", dict(whiten_advantages=True), {}))
    cases.append(("reinforce_unwhitened", dict(preset="reinforce_plus_plus", whiten_advantages=False, gamma=0.8), {}))
    cases.append(("filtered", dict(preset="dapo"), dict(ties=True, groups=6)))
    cases.append(("filtered_gae", dict(preset="ppo", filter_groups=True), dict(ties=True, groups=6)))
    cases.append(("overlong", dict(overlong_buffer=dict(len=3, penalty_factor=0.7)), {}))
    cases.append(("overlong_token_rewards", dict(adv_estimator="reinforce_plus_plus", overlong_buffer=dict(len=4)),
                  dict(kind="token_rewards")))
    cases.append(("mask_truncated", dict(mask_truncated_completions=True), dict(truncated=0.5)))
    for loss in ("clip", "gspo", "cispo", "sapo", "gmpo", "clip_cov", "kl_cov", "dppo_tv", "reinforce", "sft"):
        for mode in ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"):
            # kl_cov bounds no ratio: far tokens of both signs would cancel to nothing but rounding.
            cases.append((f"{loss}_{mode}", dict(policy_loss=loss, loss_agg_mode=mode), dict(far=0.0 if loss == "kl_cov" else 0.15)))
    cases.append(("gspo_wide", dict(policy_loss="gspo", clip_ratio_low=0.5, clip_ratio_high=1.0), dict(far=0.2)))
    cases.append(("gmpo_wide", dict(preset="gmpo"), dict(far=0.0)))
    cases.append(("cispo_absolute", dict(preset="cispo", cispo_bound="absolute", clip_ratio_high=1.1), {}))
    cases.append(("cispo_both_bounds", dict(policy_loss="cispo", clip_ratio_low=0.1), {}))
    cases.append(("no_dual_clip", dict(clip_ratio_c=0), dict(far=0.2)))
    cases.append(("dual_clip_tight", dict(clip_ratio_c=1.2), dict(far=0.1)))
    cases.append(("dppo_bounds", dict(policy_loss="dppo_tv", clip_ratio_low=0.05, clip_ratio_high=0.1, clip_ratio_c=1.1), {}))
    cases.append(("dppo_unbounded", dict(policy_loss="dppo_tv", clip_ratio_low=0.05, clip_ratio_high=0.1, clip_ratio_c=0), {}))
    cases.append(("clip_cov_many", dict(policy_loss="clip_cov", clip_cov_ratio=0.3, clip_cov_lb=0.01, clip_cov_ub=3.0),
                  dict(groups=5)))
    cases.append(("kl_cov_many", dict(policy_loss="kl_cov", kl_cov_ratio=0.3, kl_cov_coef=0.7), dict(groups=5, far=0.0)))
    cases.append(("kl_cov_off", dict(policy_loss="kl_cov", kl_cov_ratio=0.0), dict(far=0.0)))
    for est in ("k1", "abs", "k2", "k3", "k1+", "abs+", "k3+"):
        cases.append((f"kl_{est}", dict(kl_coef=0.05, kl_estimator=est), {}))
        cases.append((f"kl_{est}_clamp", dict(kl_coef=0.05, kl_estimator=est, kl_clamp=True, loss_agg_mode="token-mean"), {}))
    for where in ("loss", "reward"):
        cases.append((f"kl_adaptive_{where}", dict(kl_coef=0.2, kl_placement=where, kl_ctrl=dict(type="adaptive", horizon=50.0)), {}))
    cases.append(("entropy_bonus", dict(entropy_coef=0.03), {}))
    for mode in ("truncate", "mask"):
        for level in ("token", "sequence"):
            cases.append((f"is_{level}_{mode}", dict(rollout_is=level, rollout_is_mode=mode, rollout_is_max=1.3, rollout_is_min=0.7), {}))
    tests = {"token_k1": [0.8, 1.3], "token_k2": 0.03, "token_k3": 0.03, "seq_sum_k1": 1.4, "seq_sum_k2": 0.1, "seq_sum_k3": 0.1,
             "seq_mean_k1": [0.9, 1.2], "seq_mean_k2": 0.02, "seq_mean_k3": 0.02, "seq_max_k2": 0.05, "seq_max_k3": 0.05}
    for test, bound in tests.items():
        for over in ("kept", "all"):
            cases.append((f"rs_{test}_{over}", dict(rollout_rs={test: bound}, rollout_rs_denominator=over, kl_coef=0.1, entropy_coef=0.1),
                          dict(groups=4)))
    cases.append(("rs_two_tests", dict(rollout_rs={"token_k1": 1.5, "seq_mean_k3": 0.03}, loss_agg_mode="token-mean"), dict(groups=4)))
    cases.append(("rs_gae", dict(preset="ppo", rollout_rs={"seq_max_k2": 0.05}), {}))
    cases.append(("distill_discounted", dict(preset="distill", distill_discount=0.7), {}))
    cases.append(("distill_with_rewards", dict(distill_coef=0.5, distill_discount=1.0), {}))
    for kind in ("forward_kl", "reverse_kl", "jsd"):
        cases.append((f"vocabulary_{kind}", dict(preset="gkd", distill_loss=kind, distill_temperature=1.7, distill_beta=0.3), {}))
    cases.append(("vocabulary_top_k", dict(preset="gkd", distill_loss="forward_kl", distill_top_k=2), dict(groups=4)))
    cases.append(("vocabulary_with_policy", dict(distill_loss="jsd", distill_loss_coef=0.4), {}))
    cases.append(("dpo_smoothed", dict(preset="dpo", dpo_beta=0.3, label_smoothing=0.1), dict(far=0.0)))
    cases.append(("ipo", dict(preset="dpo", policy_loss="ipo"), dict(far=0.0)))
    cases.append(("several_rewards", dict(), dict(kind="rewards")))
    for preset in ("grpo", "dapo", "gspo", "gmpo", "ppo", "rloo", "opo", "gdpo", "distill", "sft", "reinforce_plus_plus"):
        kind = "rewards" if preset == "gdpo" else "reward"
        cases.append((f"all_masked_{preset}", dict(preset=preset, kl_coef=0.0 if preset == "gdpo" else 0.1, rollout_is="sequence",
                                                   rollout_rs={"seq_mean_k1": 1.5}), dict(all_masked=1.0, kind=kind)))
        cases.append((f"groups_of_one_{preset}", dict(preset=preset), dict(sizes=(1, 1), kind=kind)))
    cases.append(("groups_of_one_batch_scale", dict(scale_rewards="batch"), dict(sizes=(1, 1))))
    cases.append(("one_group_of_one_batch_scale", dict(scale_rewards="batch"), dict(sizes=(1, 1), groups=1)))
    cases.append(("one_completion", dict(), dict(groups=1, holes=False)))
    # Arrays that only serve metrics are in the presets and the corrections; elsewhere they would only take room.
    return [(n, a, dict(dict(full=n.startswith(("preset_", "rs_", "is_", "all_masked"))), **o)) for n, a, o in cases]


def hand_made():
    """Cases whose numbers lie on a bound or leave a set empty."""
    def one(algo, **fields):
        c = dict(mask=[1, 1, 1], reward=1.0, **fields)
        return dict(algo=algo, groups=[dict(completions=[c, dict(c, reward=0.0)])])
    on_clamp = dict(policy_logprobs=[-21.0, -1.0, -0.5], old_logprobs=[-1.0, -21.0, -0.9])
    value = dict(policy_logprobs=[-1.0, -2.0, -0.5], old_logprobs=[-1.0, -2.0, -0.5], values=[1.0, 0.25, -1.0], old_values=[0.5, 0.75, 0.5])
    kl = dict(policy_logprobs=[-1.0, -2.0, -21.5], old_logprobs=[-1.0, -2.0, -21.5], ref_logprobs=[-1.0, -22.0, -1.5])
    same = dict(policy_logprobs=[-1.0, -2.0, -0.5], old_logprobs=[-1.0, -2.0, -0.5], behavior_logprobs=[-1.0, -2.0, -0.5])
    filtered = one(dict(preset="dapo"), **same)
    for c in filtered["groups"][0]["completions"]:
        c["reward"] = 0.5
    return [
        ("log_ratio_on_its_clamp", one(dict(clip_ratio_c=0, policy_loss="sapo"), **on_clamp)),
        ("gmpo_on_its_bound", one(dict(preset="gmpo"), **on_clamp)),
        ("value_on_its_clip", one(dict(preset="ppo", whiten_advantages=False), **value)),
        ("kl_on_its_clamp", one(dict(kl_coef=0.1, kl_clamp=True), **kl)),
        ("kl_abs_at_zero", one(dict(kl_coef=0.1, kl_estimator="abs"), **kl)),
        ("ratio_one", one(dict(rollout_is="token", rollout_rs={"token_k1": 1.0, "seq_sum_k3": 0.0}), **same)),
        ("everything_filtered", filtered),
        ("everything_filtered_gae", dict(algo=dict(preset="ppo", filter_groups=True),
                                         groups=[dict(completions=[dict(mask=[1, 1, 1], reward=0.5, **value)] * 2)])),
        ("everything_rejected", one(dict(rollout_rs={"token_k2": 0.0}, kl_coef=0.1, entropy_coef=0.1),
                                    **dict(kl, behavior_logprobs=[-3.0, -3.0, -3.0], entropies=[1.0, 1.0, 1.0]))),
    ]


def random_algo(rng):
    pick = rng.choice
    algo = {}
    if rng.random() < 0.5:
        algo["preset"] = pick(list(PRESETS))
    choices = dict(
        adv_estimator=["grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "remax", "opo", "gpg", "grpo_passk",
                       "gdpo", "gae", "none"],
        scale_rewards=["group", "batch", "none"], whiten_advantages=[True, False], gamma=[1.0, 0.9], lam=[1.0, 0.8],
        gae_skip_masked=[True, False], filter_groups=[True, False], mask_truncated_completions=[True, False],
        policy_loss=list(RATIO) + ["reinforce", "none", "sft", "dpo", "ipo", "reward_model"],
        loss_agg_mode=["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"],
        clip_ratio_low=[0.1, 0.3], clip_ratio_high=[0.1, 0.4], clip_ratio_c=[0, 1.5, 3.0], cispo_bound=["relative", "absolute"],
        clip_cov_ratio=[0.1, 0.4], clip_cov_lb=[0.0, 0.1], kl_cov_ratio=[0.0, 0.3], kl_coef=[0.0, 0.1, 0.3],
        kl_estimator=["k1", "abs", "k2", "k3", "k1+", "abs+", "k3+"], kl_clamp=[True, False], kl_placement=["loss", "reward"],
        kl_ctrl=[dict(type="adaptive", target=0.05, horizon=20.0), dict(type="fixed")], entropy_coef=[0.02, -0.1],
        rollout_is=["none", "token", "sequence"], rollout_is_mode=["truncate", "mask"], rollout_is_max=[1.2, 3.0],
        rollout_is_min=[0.0, 0.8], rollout_rs=[{"token_k1": [0.7, 1.5]}, {"seq_mean_k3": 0.05, "token_k2": 0.1}, {"seq_max_k3": 0.1},
                                               {"seq_sum_k1": 2.0}, {"seq_sum_k2": 0.3}],
        rollout_rs_denominator=["kept", "all"], value_clip=[0.0, 0.2], vf_coef=[0.5], distill_coef=[0.3], distill_discount=[0.5, 1.0],
        distill_loss=["none", "forward_kl", "reverse_kl", "jsd"], distill_loss_coef=[0.7], distill_beta=[0.2, 0.9],
        distill_temperature=[0.7, 2.0], dpo_beta=[0.05, 0.5], label_smoothing=[0.2])
    for key, values in choices.items():
        if rng.random() < 0.22:
            algo[key] = pick(values)
    if rng.random() < 0.15:
        algo["overlong_buffer"] = dict(len=3, penalty_factor=0.5)
    a = settings_of(algo)
    if a["adv_estimator"] == "gdpo" and (a["overlong_buffer"]["len"] or (a["kl_coef"] and a["kl_placement"] == "reward")):
        return random_algo(rng)
    if a["policy_loss"] == "gmpo" and a["rollout_is"] == "token":
        return random_algo(rng)
    if a["policy_loss"] == "reward_model" and a["mask_truncated_completions"]:
        return random_algo(rng)
    if a["policy_loss"] in ("dpo", "ipo", "reward_model") and a["kl_coef"] and a["kl_placement"] == "reward":
        return random_algo(rng)
    if a["distill_loss"] == "forward_kl" and rng.random() < 0.5:
        algo["distill_top_k"] = 2
    return algo


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--out-dir", default="")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(20240817)
    cases = []
    for name, algo, options in named_cases():
        fixture = random_fixture(rng, algo, **options)
        cases.append({"name": name, "fixture": fixture, "expected": evaluate(fixture)})
    cases += [{"name": name, "fixture": fixture, "expected": evaluate(fixture)} for name, fixture in hand_made()]
    with open(args.out, "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(f"{args.out}: {len(cases)} cases")
    rng = random.Random(args.seed)
    for k in range(args.random):
        algo = random_algo(rng)
        a = settings_of(algo)
        kind = "rewards" if a["adv_estimator"] == "gdpo" else rng.choice(["reward", "rewards", "token_rewards"])
        fixture = random_fixture(rng, algo, kind=kind, ties=rng.random() < 0.5, groups=rng.randint(1, 5), far=rng.choice([0, 0.1]))
        base = os.path.join(args.out_dir, f"{k:04d}_random")
        with open(base + ".json", "w", encoding="utf-8") as f:
            json.dump(fixture, f)
        with open(base + ".expected.json", "w", encoding="utf-8") as f:
            json.dump(evaluate(fixture), f)


if __name__ == "__main__":
    main()
