"""Every loss of the two papers and of their rivals, and the adaptation matrix: pure functions of tensors."""

import math

import torch
import torch.nn.functional as F

# ---------------------------------------------------------------- DFND


def kd_loss(student, teacher, T, weights=None, T_power=2):
    """Knowledge distillation, L_KD = T^2 / B * sum_i w_i * KL(softmax(t_i / T) || softmax(s_i / T)).

    student, teacher: logits (B, C). T: temperature. weights: (B,), each image's class weight, or None for ones. T_power: in the place
    of the 2. Follows the first upload's loss with class weights, the released file's without.
    """
    log_s = F.log_softmax(student / T, dim=1)
    log_t = F.log_softmax(teacher / T, dim=1)
    kl = (log_t.exp() * (log_t - log_s)).sum(dim=1)  # (B,)
    if weights is not None:
        kl = kl * weights
    return T**T_power * kl.sum() / len(kl)


def log_adaptation_matrix(theta, accuracy):
    """log Q, (C, C): row i is the true class, column j the class that the teacher says (DFND section 3.3).

    theta: (C, C - 1), learned, zero at the start. accuracy: the teacher's, in (0, 1]: Q's diagonal. The off-diagonal
    part of row i is (1 - accuracy) * softmax(theta_i), so that every row sums to 1. Built whole and in log space: the
    published code fills it row by row in Python, and the logarithm of a vanishing probability is an infinity.
    """
    C = len(theta)
    off = F.log_softmax(theta, dim=1) + torch.log1p(theta.new_tensor(-accuracy))
    diagonal = theta.new_full((C, 1), math.log(accuracy))
    # In a row-major C x C matrix, C off-diagonal entries lie between one diagonal entry and the next.
    tail = torch.cat([off.reshape(C - 1, C), diagonal[1:]], dim=1)  # (C - 1, C + 1)
    return torch.cat([diagonal[0], tail.flatten()]).reshape(C, C)


def noisy_nll(student, labels, theta, accuracy, weights=None, weight_sum=None):
    """L_NLL = weighted mean of -log (softmax(s_i) @ Q)[y_i]: the likelihood of the teacher's noisy label (section 3.3).

    student: logits (B, C). labels: (B,), the teacher's arg-max. theta, accuracy: see `log_adaptation_matrix`.
    weights: (B,), each image's class weight, or None; the mean is by their sum, as torch's nll_loss has it, or by `weight_sum`.
    """
    log_Q_y = log_adaptation_matrix(theta, accuracy).t()[labels]  # (B, C): row i is log Q[:, y_i]
    log_likelihood = torch.logsumexp(F.log_softmax(student, dim=1) + log_Q_y, dim=1)  # (B,)
    return weighted_mean(-log_likelihood, weights, weight_sum)


def weighted_mean(values, weights=None, weight_sum=None):
    """values, weights: (B,). By the sum of the weights, or by `weight_sum`; without weights the plain mean."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / (weights.sum() if weight_sum is None else weight_sum)


# ---------------------------------------------------------------- DAFL (ICCV 2019, section 3)


def one_hot_loss(teacher):
    """CE(t, argmax t): small when the teacher is sure of the image. teacher: logits (B, C)."""
    return F.cross_entropy(teacher, teacher.argmax(dim=1))


def information_entropy_loss(p):
    """sum_c p_c log10 p_c: smallest, -log10 C, when the classes are balanced.

    p: (C,), the mean over the batch of softmax(t). The base of 10 is the published code's.
    """
    return (p * torch.log10(p.clamp_min(torch.finfo(p.dtype).tiny))).sum()


def classes_drawn(loss_ie):
    """Over how many classes the images of a batch spread, as many as would give its entropy if all were alike: 10 for ten balanced ones,
    9 or less where one of them is missing. loss_ie: information_entropy_loss's, of one batch or a mean over batches."""
    return 10**-loss_ie


def fewest_classes(C, batch_size):
    """What `classes_drawn` has at least in a sound training: eight tenths of the C classes (9.2 to 9.8 of ten were seen on MNIST), less
    what a small batch takes, since the entropy of B images of C classes is by (C - 1) / 2B nats too low (Miller and Madow, 1955)."""
    return 0.8 * C * math.exp(-(C - 1) / (2 * batch_size))


def activation_loss(feature):
    """-mean |f|: real images excite the teacher's features more than noise does. feature: (B, F)."""
    return -feature.abs().mean()


# ---------------------------------------------------------------- DFAD (Fang et al., 2019, arXiv 1912.11006, section 3.2)


def logit_difference(student, teacher):
    """mean |t - s| over images and classes: the student makes it small, the generator large. student, teacher: logits (B, C)."""
    return (student - teacher).abs().mean()


# ---------------------------------------------------------------- PU-compression (Xu et al., NeurIPS 2019, sections 3.1 and 3.2)


def nn_pu_risk(positive, unlabelled, prior):
    """The non-negative risk of a classifier that saw no negative (Kiryo et al., 2017), by the sigmoid loss: (its value, what to go down).

    positive: scores (P,), unlabelled: (U,), above 0 for positive. prior: the share of positives among the unlabelled. The negatives'
    risk, mean sigmoid(u) - prior * mean sigmoid(p), can't be negative for a classifier that did not overfit: where it is, the step goes
    up that term alone.
    """
    positive_risk = prior * torch.sigmoid(-positive).mean()
    negative_risk = torch.sigmoid(unlabelled).mean() - prior * torch.sigmoid(positive).mean()
    risk = positive_risk + negative_risk.clamp_min(0)
    return risk, positive_risk + negative_risk if negative_risk >= 0 else -negative_risk


def robust_kd_losses(student, teacher, T, weights, T_power=1):
    """kd_loss by each of K guesses of the class weights: (K,); the greatest is what the student learns from. weights: (B, K)."""
    return torch.stack([kd_loss(student, teacher, T, w, T_power) for w in weights.unbind(1)])


# ---------------------------------------------------------------- DeepInversion (Yin et al., CVPR 2020, sections 3.2 and 3.3)


def statistics_loss(x, mean, var):
    """|mean of x - mean| + |variance of x - var|, Euclidean norms over the channels. x: (B, C, H, W), a batch norm's input. mean, var:
    (C,), what it knows of the original data's."""
    return (x.mean(dim=(0, 2, 3)) - mean).norm() + (x.var(dim=(0, 2, 3), unbiased=False) - var).norm()


def total_variation(x):
    """The sum of the norms of the differences of neighbours: beside, below, and on both diagonals. x: (B, C, H, W)."""
    return ((x[..., :-1] - x[..., 1:]).norm() + (x[..., :-1, :] - x[..., 1:, :]).norm()
            + (x[..., 1:, :-1] - x[..., :-1, 1:]).norm() + (x[..., :-1, :-1] - x[..., 1:, 1:]).norm())


def disagreement(student, teacher, T=3.0):
    """1 - JS, the divergence of Jensen and Shannon at temperature T: 1 where the two agree, and less the less they do. Probabilities are
    kept within 0.01 .. 0.99, as published. student, teacher: logits (B, C)."""
    p, q = F.softmax(student / T, dim=1), F.softmax(teacher / T, dim=1)
    p, q, m = (x.clamp(0.01, 0.99) for x in (p, q, (p + q) / 2))
    js = (m * (2 * m.log() - p.log() - q.log())).sum(dim=1).mean() / 2
    return 1 - js.clamp(0, 1)
