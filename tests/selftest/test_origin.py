"""Of which commit a report is: by git, and by what a CI job tells."""

import json
import subprocess
from pathlib import Path

import pytest

from enginegate.machine.checkout import Checkout, checkout_of, is_changed

IDENTITY = ("-c", "user.name=tester", "-c", "user.email=tester@example.com")
HEAD = "c0ffee" + 34 * "0"


def git(folder, *words):
    command = ["git", "-C", str(folder), *IDENTITY, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits on the branch `work`, the first tagged `before`."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "work")
    for text, tag in (("1", "before"), ("2", "after")):
        (folder / "file").write_text(text)
        git(folder, "add", "file")
        git(folder, "commit", "-qm", tag)
        git(folder, "tag", tag)
    return folder


def test_commit_branch_and_what_was_measured_beside(repository):
    found = checkout_of(repository, repository / "baselines", "before", {})
    now, then = (git(repository, "rev-parse", tag) for tag in ("after", "before"))
    assert found == Checkout(now, "work", changed=False, base=then)


def test_a_changed_file_is_told_and_a_new_one_is_not(repository):
    (repository / "new").write_text("")
    assert not checkout_of(repository, repository / "baselines", "", {}).changed
    (repository / "file").write_text("3")
    assert checkout_of(repository, repository / "baselines", "", {}).changed


@pytest.mark.parametrize("untracked", [False, True])
def test_what_a_refresh_wrote_is_no_change_and_anything_else_is(repository, untracked):
    baselines = repository / "baselines"
    baselines.mkdir()
    (baselines / "known.json").write_text("1")
    git(repository, "add", "baselines")
    git(repository, "commit", "-qm", "baselines")
    (baselines / "known.json").write_text("2")
    (baselines / "new.json").write_text("1")
    assert not is_changed(repository, baselines, untracked=untracked)
    (repository / "new").write_text("")
    assert is_changed(repository, baselines, untracked=untracked) is untracked


def test_with_baselines_elsewhere_a_change_is_seen(repository, tmp_path):
    (repository / "file").write_text("3")
    assert is_changed(repository, tmp_path / "baselines", untracked=True)


def test_saved_engines_are_no_commit(repository, tmp_path):
    assert checkout_of(repository, repository / "baselines", str(tmp_path), {}).base == ""


def test_outside_git_nothing_is_known(tmp_path):
    assert checkout_of(tmp_path, tmp_path / "baselines", "", {}) == Checkout()


def github(repository, tmp_path, **event):
    path = tmp_path / "event.json"
    path.write_text(json.dumps(event))
    return {
        "GITHUB_SERVER_URL": "https://github.com",
        "GITHUB_REPOSITORY": "acme/engines",
        "GITHUB_SHA": git(repository, "rev-parse", "HEAD"),
        "GITHUB_REF_NAME": "7/merge",
        "GITHUB_EVENT_PATH": str(path),
    }


def test_a_pull_request_on_github_names_its_own_commit(repository, tmp_path):
    job = github(repository, tmp_path, pull_request={"head": {"sha": HEAD}})
    found = checkout_of(
        repository, repository / "baselines", "", {**job, "GITHUB_HEAD_REF": "faster"}
    )
    assert (found.commit, found.branch) == (HEAD, "faster")
    assert found.commits_url == "https://github.com/acme/engines/commit/"


@pytest.mark.parametrize("damage", ["[" * 200_000, "no JSON", "[]"])
def test_a_damaged_event_of_github_loses_nothing(repository, tmp_path, damage):
    job = github(repository, tmp_path)
    Path(job["GITHUB_EVENT_PATH"]).write_text(damage)
    assert checkout_of(repository, repository / "baselines", "", job).commit == git(
        repository, "rev-parse", "HEAD"
    )


def test_a_push_on_github_names_what_is_checked_out(repository, tmp_path):
    found = checkout_of(
        repository, repository / "baselines", "", github(repository, tmp_path, ref="x")
    )
    assert (found.commit, found.branch) == (git(repository, "rev-parse", "HEAD"), "7/merge")


def test_another_repository_in_the_same_job_is_not_taken_for_the_jobs_own(repository, tmp_path):
    job = github(repository, tmp_path, pull_request={"head": {"sha": HEAD}})
    found = checkout_of(repository, repository / "baselines", "", {**job, "GITHUB_SHA": HEAD})
    assert (found.branch, found.commits_url) == ("work", "")


def test_a_merge_request_on_gitlab(repository):
    git(repository, "checkout", "-q", "--detach")
    job = {
        "CI_PROJECT_URL": "https://gitlab.com/acme/engines",
        "CI_COMMIT_SHA": git(repository, "rev-parse", "HEAD"),
        "CI_MERGE_REQUEST_SOURCE_BRANCH_NAME": "faster",
        "CI_COMMIT_REF_NAME": "refs/merge-requests/7/head",
    }
    found = checkout_of(repository, repository / "baselines", "", job)
    assert found.branch == "faster"
    assert found.commits_url == "https://gitlab.com/acme/engines/-/commit/"
