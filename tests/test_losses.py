"""Every loss beside a closed form or a plain loop over floats, in value and in gradient."""

import math

import pytest
import torch
import torch.nn.functional as F

from losses import (
    activation_loss,
    classes_drawn,
    disagreement,
    fewest_classes,
    information_entropy_loss,
    kd_loss,
    log_adaptation_matrix,
    logit_difference,
    nn_pu_risk,
    noisy_nll,
    one_hot_loss,
    robust_kd_losses,
    statistics_loss,
    total_variation,
)


def softmax(row):  # plain loops, nothing of torch but exp and log
    total = sum(torch.exp(v - max(row)) for v in row)
    return [torch.exp(v - max(row)) / total for v in row]


def plain_kd(s, t, T, weights):
    rows = [(softmax([v / T for v in a]), softmax([v / T for v in b])) for a, b in zip(s, t)]
    return T * T * sum(w * sum(q * (torch.log(q) - torch.log(p)) for p, q in zip(*row)) for w, row in zip(weights, rows)) / len(s)


def plain_matrix(theta, a):
    off = [[(1 - a) * v for v in softmax(list(row))] for row in theta]
    return [[*row[:i], a, *row[i:]] for i, row in enumerate(off)]


def plain_nll(s, labels, theta, a, class_weights):
    Q = plain_matrix(theta, a)
    losses = [-class_weights[y] * torch.log(sum(p * Q[c][y] for c, p in enumerate(softmax(list(row))))) for row, y in zip(s, labels)]
    return sum(losses) / sum(class_weights[y] for y in labels)


def data(B=7, C=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    s, t = (3 * torch.randn(B, C, generator=g, dtype=torch.float64) for _ in range(2))
    theta = torch.randn(C, C - 1, generator=g, dtype=torch.float64)
    return s.requires_grad_(), t.requires_grad_(), theta.requires_grad_(), torch.rand(C, generator=g, dtype=torch.float64) + 0.2


def assert_same(ours, plain, inputs):
    """In value and in the gradient of every input, to 1e-6 relative."""
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-14)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs)):
        assert b.abs().max() > 1e-6  # a zero gradient would show nothing
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


# ---------------------------------------------------------------- DFND


@pytest.mark.parametrize('T', [1, 2.0, 4.0])
@pytest.mark.parametrize('weighted', [False, True])
def test_kd_equals_the_plain_loop(T, weighted):
    s, t, _, w = data()
    weights = w[t.argmax(dim=1)] if weighted else None
    assert_same(kd_loss(s, t, T, weights), plain_kd(s, t, T, [1.0] * len(s) if weights is None else weights), [s, t])


def test_kd_of_equal_and_of_shifted_logits_is_zero_and_of_two_classes_as_by_hand():
    s = data()[0]
    assert abs(kd_loss(s, s, 4.0).item()) < 1e-15
    assert abs(kd_loss(s, s + 17.0, 4.0).item()) < 1e-12
    s, t = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0) * 2, 0.0]])  # at T = 2: (1/2, 1/2) and (3/4, 1/4)
    by_hand = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert kd_loss(s, t, 2.0).item() == pytest.approx(by_hand, rel=1e-6)
    assert kd_loss(s, t, 2.0, T_power=0).item() == pytest.approx(by_hand / 4, rel=1e-6)


@pytest.mark.parametrize('C, a', [(2, 0.6), (3, 0.9), (10, 0.9523), (100, 0.7774)])
def test_matrix_starts_with_equal_shares_off_the_diagonal_and_equals_the_plain_double_loop(C, a):
    Q = log_adaptation_matrix(torch.zeros(C, C - 1, dtype=torch.float64), a).exp()
    expected = torch.full((C, C), (1 - a) / (C - 1), dtype=torch.float64).fill_diagonal_(a)
    torch.testing.assert_close(Q, expected, rtol=1e-12, atol=0)
    theta = 5 * torch.randn(C, C - 1, dtype=torch.float64, generator=torch.Generator().manual_seed(C))
    Q = log_adaptation_matrix(theta, a).exp()
    torch.testing.assert_close(Q.sum(dim=1), torch.ones(C, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(Q, torch.tensor(plain_matrix(theta, a), dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('a', [0.9523, 0.3])
@pytest.mark.parametrize('C', [2, 5])
def test_noisy_nll_equals_the_plain_loop(weighted, a, C):
    s, t, theta, w = data(C=C)
    labels = t.argmax(dim=1)
    inputs = [s, theta] if C > 2 else [s]  # of two classes, a row of theta has one entry, and nothing to learn
    assert_same(noisy_nll(s, labels, theta, a, w[labels] if weighted else None),
                plain_nll(s, labels, theta, a, w if weighted else [1.0] * C), inputs)


@pytest.mark.parametrize('weighted', [False, True])
def test_noisy_nll_of_a_perfect_teacher_is_cross_entropy(weighted):
    s, t, theta, w = data()
    labels, w = t.argmax(dim=1), w if weighted else None
    ours = noisy_nll(s, labels, theta, 1.0, w if w is None else w[labels])
    plain = F.nll_loss(F.log_softmax(s, dim=1), labels, weight=w)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    ours_s, ours_theta = torch.autograd.grad(ours, [s, theta])
    torch.testing.assert_close(ours_s, torch.autograd.grad(plain, s)[0], rtol=1e-9, atol=1e-15)
    assert ours_theta.eq(0).all()  # not NaN: minus infinity stands where theta does


@pytest.mark.parametrize('accuracy', [0.0001, 0.9, 0.999999, 1.0])
def test_extreme_float32_logits_give_finite_losses_and_gradients(accuracy):
    s = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 1e4, -1e4]], requires_grad=True)
    t = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, -1e4], [1e4, -1e4, -1e4]])
    theta = torch.tensor([[1e4, -1e4], [0.0, 0.0], [-1e4, 1e4]], requires_grad=True)
    weights = torch.tensor([0.01, 1.0, 1.99])
    for loss in (kd_loss(s, t, 4.0), *(noisy_nll(s, t.argmax(dim=1), theta, accuracy, w) for w in (None, weights))):
        assert loss.isfinite() and loss > 0
        gradients = torch.autograd.grad(loss, [s, theta], allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)


# ---------------------------------------------------------------- DAFL


def test_one_hot_loss_of_uniform_logits_is_log_c_and_of_sure_ones_zero():
    assert one_hot_loss(torch.zeros(4, 10)).item() == pytest.approx(math.log(10), rel=1e-6)
    assert one_hot_loss(100 * torch.eye(10)).item() == pytest.approx(0, abs=1e-6)
    t = data()[1]
    assert_same(one_hot_loss(t), sum(-torch.log(max(softmax(list(row)))) for row in t) / len(t), [t])


def test_information_entropy_is_minus_log10_c_when_balanced_zero_when_collapsed_and_else_the_plain_loop():
    t = data()[1]
    mean = [sum(column) / len(t) for column in zip(*[softmax(list(row)) for row in t])]
    assert_same(information_entropy_loss(F.softmax(t, dim=1).mean(dim=0)), sum(p * torch.log(p) / math.log(10) for p in mean), [t])
    assert information_entropy_loss(torch.eye(10).mean(dim=0)).item() == pytest.approx(-1, rel=1e-6)  # ten classes: -log10 10
    collapsed = torch.eye(10)[3].requires_grad_()
    loss = information_entropy_loss(collapsed)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, collapsed)[0].isfinite().all()


@pytest.mark.parametrize('counts, classes', [([1] * 10, 10), ([5, 0, 0], 1), ([1, 1, 0, 0], 2)])
def test_classes_drawn_are_those_of_an_even_spread(counts, classes):
    p = torch.tensor(counts, dtype=torch.float64)
    assert classes_drawn(information_entropy_loss(p / p.sum()).item()) == pytest.approx(classes)


@pytest.mark.parametrize('batch_size', [16, 512])
def test_even_images_of_all_classes_are_no_collapse_and_two_thirds_of_the_classes_are_one(batch_size):
    def mean_loss(classes):
        labels = torch.randint(classes, (200, batch_size), generator=torch.Generator().manual_seed(0))
        return sum(information_entropy_loss(F.one_hot(row, 10).double().mean(dim=0)).item() for row in labels) / 200

    assert classes_drawn(mean_loss(6)) < fewest_classes(10, batch_size) < classes_drawn(mean_loss(10))


def test_activation_loss_is_minus_the_mean_absolute_feature():
    feature = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 6.0]], requires_grad=True)
    loss = activation_loss(feature)
    assert loss.item() == -2.0
    assert torch.equal(torch.autograd.grad(loss, feature)[0], torch.tensor([[-1.0, 1.0, -1.0], [0.0, 0.0, -1.0]]) / 6)


# ---------------------------------------------------------------- DFAD


def test_logit_difference_is_the_mean_absolute_difference_over_images_and_classes():
    s, t, _, _ = data()
    plain = sum(abs(x - y) for a, b in zip(s, t) for x, y in zip(a, b)) / (len(s) * len(s[0]))
    assert_same(logit_difference(s, t), plain, [s, t])
    s = torch.tensor([[1.0, -2.0], [0.0, 5.0]], requires_grad=True)
    loss = logit_difference(s, torch.tensor([[0.0, 0.0], [4.0, 5.0]]))
    assert loss.item() == (1 + 2 + 4 + 0) / 4
    assert torch.equal(torch.autograd.grad(loss, s)[0], torch.tensor([[1.0, -1.0], [-1.0, 0.0]]) / 4)


# ---------------------------------------------------------------- PU-compression


def test_the_non_negative_risk_is_the_plain_sum_and_goes_up_where_the_negatives_risk_is_below_zero():
    sigmoid = lambda v: 1 / (1 + math.exp(-v))  # noqa: E731
    p, u = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True), torch.tensor([2.0, -3.0, 0.0], dtype=torch.float64)
    u.requires_grad_()
    by_hand = 0.3 * (sigmoid(-0.5) + sigmoid(1)) / 2 + (sigmoid(2) + sigmoid(-3) + 0.5) / 3 - 0.3 * (sigmoid(0.5) + sigmoid(-1)) / 2
    risk, objective = nn_pu_risk(p, u, 0.3)
    assert risk.item() == objective.item() == pytest.approx(by_hand, rel=1e-12)
    plain = sum(0.3 * (torch.sigmoid(-x) - torch.sigmoid(x)) for x in p) / 2 + sum(torch.sigmoid(x) for x in u) / 3
    assert_same(objective, plain, [p, u])
    low = torch.tensor([-6.0, -7.0], dtype=torch.float64, requires_grad=True)  # none is called positive: it overfits the negatives
    risk, objective = nn_pu_risk(p, low, 0.3)
    negatives = (sigmoid(-6) + sigmoid(-7)) / 2 - 0.3 * (sigmoid(0.5) + sigmoid(-1)) / 2
    assert negatives < 0 and objective.item() == pytest.approx(-negatives, rel=1e-12)
    assert risk.item() == pytest.approx(0.3 * (sigmoid(-0.5) + sigmoid(1)) / 2, rel=1e-12)
    assert torch.autograd.grad(objective, low)[0].lt(0).all()  # a step down the objective raises these scores


def test_the_robust_losses_are_kd_by_each_guess_of_the_class_weights():
    s, t, _, w = data()
    guesses = torch.stack([w, w + 0.1 * torch.arange(5)], dim=1)[t.argmax(dim=1)]  # (B, 2)
    for k in range(2):
        ours = robust_kd_losses(s, t, 2.0, guesses)
        assert_same(ours[k], plain_kd(s, t, 2.0, guesses[:, k]) / 2, [s, t])  # times T, and not T squared


# ---------------------------------------------------------------- DeepInversion


def test_the_statistics_loss_is_the_plain_norms_and_zero_where_mean_and_variance_are_known():
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mean, var = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.25], dtype=torch.float64)
    flat = [torch.cat([image[c].flatten() for image in x]) for c in range(2)]
    means = [sum(values) / 60 for values in flat]
    variances = [sum((v - m) ** 2 for v in values) / 60 for values, m in zip(flat, means)]
    plain = sum(sum((a - b) ** 2 for a, b in zip(*pair)) ** 0.5 for pair in ((means, mean), (variances, var)))
    assert_same(statistics_loss(x, mean, var), plain, [x])
    same = statistics_loss(x.detach(), x.detach().mean(dim=(0, 2, 3)), x.detach().var(dim=(0, 2, 3), unbiased=False))
    assert same.item() == pytest.approx(0, abs=1e-12)


def test_total_variation_of_a_constant_is_zero_and_of_one_bright_pixel_as_by_hand():
    assert total_variation(torch.full((2, 3, 4, 4), 7.0)).item() == 0
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 1, 1] = 2.0  # two neighbours in each of the four directions
    assert total_variation(x).item() == pytest.approx(4 * math.sqrt(2 * 2.0**2), rel=1e-6)


def test_disagreement_is_one_where_both_agree_and_one_minus_js_elsewhere():
    s, t, _, _ = data(C=3)
    assert disagreement(s, s + 5).item() == pytest.approx(1, abs=1e-12)
    js = 0
    for a, b in zip(s, t):
        p, q = ([max(0.01, min(0.99, v.item())) for v in softmax([v / 3 for v in row])] for row in (a, b))
        m = [max(0.01, min(0.99, (x + y).item() / 2)) for x, y in zip(softmax([v / 3 for v in a]), softmax([v / 3 for v in b]))]
        js += sum(z * (math.log(z) - math.log(x)) + z * (math.log(z) - math.log(y)) for x, y, z in zip(p, q, m)) / 2
    assert disagreement(s, t).item() == pytest.approx(1 - js / len(s), rel=1e-9)
