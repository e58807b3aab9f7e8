"""The counts behind the roofline, against formulas by hand, and the tables that they make."""

from __future__ import annotations

from collections import Counter as Counts
from math import isclose

import numpy as np
import pytest
import torch

from benchmarks.roofline import check as check_module
from benchmarks.roofline import parts as parts_module
from benchmarks.roofline import processor as processor_module
from benchmarks.roofline.__main__ import main
from benchmarks.roofline.ceilings import LAUNCH, LINK, PUBLISHED
from benchmarks.roofline.counter import Counter, Operation
from benchmarks.roofline.ideal import by_kind, ideal_pass, pass_bytes, pass_flops, product_rate
from benchmarks.roofline.parts import Size, count_pass, count_solve, proven
from benchmarks.roofline.processor import SETS, Processor
from convexprobe.activations.source import Rows
from convexprobe.arrays import split_products
from convexprobe.problem import softmax
from convexprobe.problem.objective import CHECKED, Problem
from convexprobe.problem.softmax import row_terms

H100 = PUBLISHED["H100"]


def count(work, answer=None) -> list[Operation]:
    with Counter(answer) as counter:
        work()
    return counter.operations


def the(operations: list[Operation]) -> Operation:
    (operation,) = operations
    return operation


def test_a_product_has_its_flops_and_reads_and_writes_each_number_once() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    product = the(count(lambda: a @ b))
    assert (product.name, product.kind, product.dtype) == ("mm", "product", "float32")
    assert product.flops == 2 * 3 * 5 * 7
    assert (product.read, product.written) == (4 * (15 + 35), 4 * 21)


def test_views_and_allocations_are_free() -> None:
    a = torch.ones(4, 6)
    assert not count(lambda: (a.T[1:3, None, :].expand(2, 9, 4), a.reshape(24), torch.empty(5)))


def test_what_is_given_twice_or_expanded_is_read_once_and_what_is_overwritten_not_at_all() -> None:
    a, row = torch.ones(4, 6), torch.ones(1, 6)
    assert the(count(lambda: a * a)).read == 4 * 24
    assert the(count(lambda: a - row.expand(4, 6))).read == 4 * (24 + 6)
    in_place = the(count(lambda: a.mul_(row)))
    assert (in_place.read, in_place.written) == (4 * (24 + 6), 4 * 24)
    copied = the(count(lambda: a.copy_(row.double())[1:])[1:])
    assert (copied.read, copied.written) == (8 * 6, 4 * 24)
    out = torch.empty(4, 6)
    into = the(count(lambda: torch.mul(a, a, out=out)))
    assert (into.read, into.written) == (4 * 24, 4 * 24)
    over = the(count(lambda: torch.mul(a, out, out=out)))  # what it overwrites is read, too
    assert (over.read, over.written) == (2 * 4 * 24, 4 * 24)
    made = the(count(lambda: a.new_full((2,), 1.0)))
    assert (made.read, made.written) == (0, 8)


def test_an_index_reads_what_it_picks() -> None:
    a, index = torch.ones(1, 50, 6), torch.zeros((1, 1, 6), dtype=torch.int64)
    picked = the(count(lambda: torch.gather(a, 1, index)))
    assert (picked.read, picked.written) == (8 * 6 + 4 * 6, 4 * 6)
    added = the(count(lambda: a.scatter_add_(1, index, torch.ones(1).expand(1, 1, 6)))[1:])
    assert (added.read, added.written) == (8 * 6 + 4 + 4 * 6, 4 * 6)


def test_an_array_is_as_far_as_what_was_touched_since() -> None:
    a, b = torch.ones(100), torch.ones(25)

    def work() -> None:
        b.neg_()
        a.neg_()
        b.neg_()

    first, other, again = count(work)
    assert first.reach == ((1.0, np.inf),) and other.reach == ((1.0, np.inf),)
    assert again.reach == ((1.0, first.bytes + other.bytes),)


def test_a_processor_takes_what_its_rates_and_its_calls_say() -> None:
    slow, fast = [1e6] * len(SETS), [1e9] * len(SETS)
    processor = Processor(1e-6, 0.0, {"elementwise": slow, "in place": fast, "copy": fast})
    a, b = torch.ones(250, 2), torch.ones(250, 2)
    took = [processor.seconds(o) for o in count(lambda: (a + b, a.add_(b), a.copy_(b)))]
    assert took == pytest.approx([1e-6 + 6e-3, 1e-6 + 6e-6, 1e-6 + 4e-6])
    product = the(count(lambda: a.T @ b))
    processor.products[product.name, product.dtype, product.shapes, product.strides] = 2e6
    assert processor.seconds(product) == pytest.approx(1e-6 + 1e-3)


def test_the_check_prints_what_is_predicted_beside_what_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether they agree is not tested: nothing that is timed is."""
    for module in (processor_module, check_module):
        monkeypatch.setattr(module, "SETS", (1 << 20,))
    check_module.check([Size(300, 8, 3, "float32")], repeats=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 300")]
    assert [line.split(" | ")[1] for line in lines] == ["evaluation", "line search", "solve"]
    assert all(float(line.split(" | ")[5]) > 0 for line in lines)


def test_the_host_is_told_what_the_script_says_of_arrays_without_numbers() -> None:
    a = torch.empty(3, device="meta")
    told = []
    operations = count(lambda: told.extend([bool((a > 0).any()), a.cpu().tolist()]), lambda *_: 0.5)
    assert told == [True, [0.5] * 3]
    assert [o.kind for o in operations].count("read") == 2
    with pytest.raises(ValueError, match="give Counter an `answer`"):
        count(lambda: float(a.sum()))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_inner_block_of_an_evaluation_touches_logits_as_often_as_it_is_written(
    weighted,
) -> None:
    """Maximum 1, less it 2, threshold 2, exponential 2, sum 1, over it 2, entropy 3 + 1, squares
    2 + 1; and residuals times weights 2."""
    k, r = 7, 50
    z, labels = torch.zeros(1, k, r), torch.zeros((1, r), dtype=torch.int64)
    weights = torch.ones(1, r) if weighted else None
    operations = count(lambda: row_terms(z, labels, weights))
    touched = sum(o.bytes for o in operations if o.kind != "index" and o.bytes >= 4 * k * r)
    arrays = 17 + (2 if weighted else 0)
    assert 4 * k * r * arrays <= touched <= 4 * k * r * arrays + 4 * r * 12
    assert Counts(o.name for o in operations)["exp_"] == 1


def test_an_evaluation_without_numbers_is_that_of_real_rows_but_for_its_blocks() -> None:
    """Products: `4 n d k` flops of the pass, and `2 s (2 d + d) k` of the rows checked."""
    n, d, k = 40, 6, 5
    x, y = torch.randn(n, d), torch.arange(n) % k
    problem = Problem(Rows(x), y, 1e-3, classes=k)
    w = torch.randn(1, problem.p, dtype=torch.float64)
    with proven():
        real = count(lambda: problem.evaluate(w, keep=True))
    counted = count_pass(Size(n, d, k, "float32"))["evaluation"]
    products = [sum(o.flops for o in ops if o.kind == "product") for ops in (real, counted)]
    checked = n  # fewer rows than `CHECKED`
    assert products == [4 * n * d * k + 2 * checked * d * k * 3] * 2
    kinds = [Counts((o.name, o.kind) for o in ops if o.kind in ("product", "index", "reduction"))
             for ops in (real, counted)]  # fmt: skip
    assert kinds[0] == kinds[1]


def test_kernels_that_have_to_prove_themselves_have_done_so_while_a_device_is_counted() -> None:
    size = Size(5_000, 60, 7)
    before = split_products.DEVICES, softmax.fused_row_terms
    evaluation = count_pass(size)["evaluation"]
    assert (split_products.DEVICES, softmax.fused_row_terms) == before
    narrow = [o for o in evaluation if o.kind == "product" and o.dtype == "bfloat16"]
    checked = len(range(0, size.n, size.n // CHECKED))  # rows whose logits are made again
    flops = pass_flops(size) + 2 * checked * size.d * size.k
    assert sum(o.flops for o in narrow) == 3 * flops  # three parts
    logits, alone = 4 * size.n * size.k, 4 * size.n
    fused = the([o for o in evaluation if o.name == "row_terms"])
    assert (fused.read, fused.written) == (logits + 8 * size.n, logits + 4 * alone)
    assert not [o for o in evaluation if o.function == "Rows.blocks"]  # nothing is converted


def test_a_kernel_of_an_evaluation_adds_what_the_package_says() -> None:
    z, labels = torch.randn(2, 3, 8), torch.arange(8)[None, :] % 3
    for found, expected in zip(
        parts_module.row_terms(z, labels), row_terms(z, labels), strict=True
    ):
        assert torch.equal(found, expected)


def test_a_line_search_multiplies_rows_twice_and_tries_one_step() -> None:
    n, d, k = 30, 4, 3
    parts = count_pass(Size(n, d, k, "float32"))
    flops = [o.flops for o in parts["line search"] if o.kind == "product"]
    assert flops.count(2 * n * d * k) >= 2
    assert sum(o.name == "exp_" and o.function == "_ray_terms" for o in parts["line search"]) == 1


def test_a_solve_makes_the_passes_that_were_asked_and_ends_with_a_repaired_bound() -> None:
    size = Size(20_000, 1_024, 20)
    parts = count_solve(size, passes=4.0)
    steps = [name for name in parts if name.startswith("step")]
    assert list(parts) == ["start", *steps, "end", "repaired bound"] and len(steps) == 4
    flops = sum(o.flops for name in steps for o in parts[name] if o.function == "Pullback.add")
    assert flops >= 4 * 2 * size.n * size.d * size.k
    assert any(o.kind == "decomposition" for o in parts[steps[0]])
    assert not any(o.function.startswith("Problem._judge") and o.kind == "product"
                   for o in parts["end"])  # fmt: skip


def test_seconds_are_the_longest_of_launch_arithmetic_and_bytes() -> None:
    def operation(kind: str, **changes) -> Operation:
        fields = {"name": "mm", "dtype": "float32", "result": "float32", "flops": 0.0}
        fields |= {"transcendental": 0.0, "read": 0.0, "written": 0.0, "reach": (), "function": ""}
        fields |= {"shapes": ((640, 640),), "strides": ((640, 1),)}
        return Operation(kind=kind, **{**fields, **changes})

    assert H100.seconds(operation("elementwise")) == LAUNCH
    assert isclose(H100.seconds(operation("copy", read=3.35e9, written=3.35e9)), 2e-3)
    assert isclose(H100.seconds(operation("product", flops=67e9)), 1e-3)
    assert isclose(H100.seconds(operation("product", flops=989.5e9, dtype="bfloat16")), 1e-3)
    assert isclose(H100.seconds(operation("read", written=64e6)), LAUNCH + 64e6 / LINK)
    columns = H100.seconds(operation("decomposition", name="_linalg_eigh"))
    assert isclose(columns, 640 * LAUNCH)
    assert PUBLISHED["H200"].bandwidth > H100.bandwidth and PUBLISHED["H200"].flops == H100.flops


def test_an_ideal_pass_reads_rows_once_and_touches_logits_twice() -> None:
    size = Size(1_281_167, 2_048, 1_000)
    assert pass_flops(size) == 4 * size.n * size.d * size.k
    assert pass_bytes(size) == size.n * (2 * size.d + 8 * size.k)
    assert isclose(product_rate(size, H100), 989.5e12 / 3)
    assert isclose(ideal_pass(size, H100), pass_flops(size) * 3 / 989.5e12)
    assert product_rate(Size(9, 9, 9, "float32"), H100) == 494.5e12 / 3
    assert product_rate(Size(9, 9, 9, "float64"), H100) == 67e12
    assert pass_flops(Size(10, 4, 2)) == 4 * 10 * 4  # one column says all
    assert ideal_pass(Size(10, 4, 2), H100) == 3 * LAUNCH


def test_the_kinds_of_operation_are_all_of_them() -> None:
    size = Size(3_000, 40, 6)
    operations = count_pass(size)["line search"]
    kinds = by_kind(operations, size, H100)
    assert sum(calls for calls, _, _ in kinds.values()) == len(operations)
    assert isclose(sum(took for _, _, took in kinds.values()), H100.total(operations))
    assert isclose(sum(moved for _, moved, _ in kinds.values()),
                   sum(o.bytes for o in operations))  # fmt: skip
    assert kinds["products"][0] and kinds["logits"][1] > 4 * size.n * size.k * 10


def test_the_command_says_that_it_is_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "3000,40,6", "--passes", "3"]) == 0
    text = capsys.readouterr().out
    assert "not measured" in text and "H100 SXM" in text and "H200 SXM" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| solve of 3 passes |") for line in lines)
    assert np.isfinite([float(line.split("|")[2]) for line in lines if "evaluation" in line]).all()
