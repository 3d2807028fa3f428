"""Several processes on this machine: what is shown, what is kept, and how they end."""

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

SUM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "sum", total.item(), sys.argv[1])
print("threads", torch.get_num_threads())
print("warned", dist.get_rank(), file=sys.stderr)
dist.destroy_process_group()
"""


def test_two_processes_form_a_group_and_only_the_first_is_shown(run_script):
    done = run_script(SUM, "given")
    assert done.code == 0, done.err
    assert done.out == "rank 0 of 2 sum 3.0 given\nthreads 1\n"
    assert "warned 0" in done.err
    assert "warned 1" not in done.err
    assert (done.logs / "rank-1.out").read_text() == "rank 1 of 2 sum 3.0 given\nthreads 1\n"
    assert "warned 1" in (done.logs / "rank-1.err").read_text()


FAILS = """
import os, sys, time
if os.environ["RANK"] == "1":
    print("error: the second rank's own fault", file=sys.stderr)
    sys.exit(7)
time.sleep(600)
"""


def test_the_exit_code_is_that_of_the_first_that_failed_and_the_others_are_ended(run_script):
    done = run_script(FAILS)
    assert done.code == 7
    assert "error: rank 1: the second rank's own fault\n" in done.err
    assert str(done.logs) in done.err
