"""Scripts with `${...}`: whatever a value holds, it stays one value."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncue.errors import Invalid
from oncue.functions.shell.readers import ScriptError
from oncue.functions.shell.script import MOST_CHARS, in_text, with_variables
from oncue.functions.shell.spec import ShellSpec, check_spec

SHELLS = [shell for shell in ("bash", "dash", "sh") if shutil.which(shell)]
#: Each would leave a file behind if any part of it were read as code.
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned;",
    "' ; touch pwned ; '",
    '" ; touch pwned ; "',
    "\n touch pwned \n",
    "&& touch pwned",
    "| touch pwned",
    "a[$(touch pwned)]",
    "${IFS}",
    "$HOME",
    "* ? [a-z]",
    "  two  blanks  ",
    "~",
    "\\",
    "EOF\ntouch pwned",
    "${_oncue_1}",
    "$((1+1))",
    "!!",
    "",
    "ä 日本 \u202e",
]
PRINT = f"""{sys.executable} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"""


def run(script: str, values: dict[str, str], folder: Path, shell: str = SHELLS[0]) -> str:
    text, variables = with_variables(script, values)
    env = {**os.environ, **{variable: values[name] for name, variable in variables.items()}}
    done = subprocess.run([shell, "-c", text], env=env, cwd=folder, capture_output=True, timeout=60)
    assert done.returncode == 0, (text, done.stderr)
    return done.stdout.decode()


#: Where quotes and parentheses are in one another. PRINT prints its arguments.
NESTED = [
    'echo "$(case a in b) ;; a|c) PRINT ${x};; esac)"',
    'echo "$(case a in (a) PRINT "${x}" ;; esac)"',
    'if true; then case a in a) echo "$(PRINT ${x})";; esac; fi',
    'echo "$((true) ; PRINT ${x})"',
    'y=; PRINT "${y:-"${x}"}"',
    "y=; PRINT ${y:-${x}}",
    "cat <<EOF\n$(PRINT ${x})\nEOF\n",
    "cat <<!\n$(PRINT ${x})\n!\n",
    "cat <<E'O'F\nit's \"\nEOF\nPRINT ${x} | cat".replace("cat <<E", "true <<E"),
    "f() { PRINT ${x}; }; f",
    'y="a}"; PRINT ${y:+"${x}"}',
    "[[ a == b || (a == a) ]] && PRINT ${x}",
]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_is_one_word_wherever_it_stands(value: str, shell: str, tmp_path: Path) -> None:
    script = f"""# it's a "comment" with ${{x}}
    {PRINT} ${{x}} "${{x}}" a${{x}}b "a ${{ x }} b" "$(printf '%s|' ${{x}})" "$(printf '%s|' "${{x}}")" \\
      ${{x}}
"""
    found = json.loads(run(script, {"x": value}, tmp_path, shell))

    assert found[:4] == [value, value, f"a{value}b", f"a {value} b"]
    assert found[4:6] == [f"{value}|"] * 2
    assert found[6] == value
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("value", HOSTILE)
def test_a_here_document_has_the_value_as_it_is(value: str, shell: str, tmp_path: Path) -> None:
    found = run("cat <<EOF\n<${x}> \"it's\"\nEOF\ncat <<-'END'\n\t$${y}\n\tEND\n", {"x": value}, tmp_path, shell)

    assert found == f'<{value}> "it\'s"\n${{y}}\n'
    assert not (tmp_path / "pwned").exists()


def test_a_file_of_any_name_is_copied(tmp_path: Path) -> None:
    for i, name in enumerate(HOSTILE):
        name = name.replace("/", "") or "empty"
        (tmp_path / name).write_text(str(i))
        run("cp -- ${data.path} ${n}.copy", {"data.path": name, "n": str(i)}, tmp_path)
        assert (tmp_path / f"{i}.copy").read_text() == str(i)
    assert not (tmp_path / "pwned").exists()


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40))
def test_no_text_becomes_code(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    found = run("printf '%s\\0' ${x} \"<${x}>\"", {"x": value}, tmp_path_factory.getbasetemp())
    assert found.split("\0")[:2] == [value, f"<{value}>"]


def test_the_shells_own_variables_stay(tmp_path: Path) -> None:
    script = 'y=scan.tif; for f in a b; do printf "%s " "$f" ${f} ; done; echo ${y%.tif} $${y} $${x:-z} ${#y} ${x}'
    assert run(script, {"x": "1 2"}, tmp_path) == "a a b b scan scan.tif z 8 1 2\n"


@pytest.mark.parametrize(
    "script",
    [
        "echo '${x}'",
        "echo `basename ${x}`",
        'echo "`basename ${x}`"',
        "echo $'a${x}'",
        "cat <<'EOF'\n${x}\nEOF\n",
        'cat <<"EOF"\n${x}\nEOF\n',
        "cat <<\\EOF\n${x}\nEOF\n",
        "echo $(( ${x} + 1 ))",
        'echo "$(( ${x} + 1 ))"',
        "(( ${x} > 1 ))",
        "cat <<EOF\n$(( ${x} ))\nEOF\n",
        "[[ ${x} -eq 1 ]]",
        "if [[ -n a && 1 -lt ${x} ]]; then true; fi",
        "a[${x}]=1",
        "eval echo ${x}",
        "let n=${x}",
        'sh -c "echo ${x}"',
        'find . -exec /bin/bash -lc "echo ${x}" ";"',
        '"bash" -c "echo ${x}"',
        'sh -c "echo $(basename ${x})"',
        "python3 -c \"print('${x}')\"",
        "perl -ne ${x}",
        'bash -o pipefail -c "echo ${x}"',
        'su alice -c "echo ${x}"',
        "ssh host ls ${x}",
        "bash <<EOF\n${x}\nEOF\n",
        "cat <<EOF | python3\n${x}\nEOF\n",
        'sed "s/a/${x}/" file',
        'sed -n -e "s/a/${x}/" file',
        'awk -v y=1 "{print ${x}}" file',
        *Path(__file__).with_name("refused.txt").read_text().split("\n---\n"),
    ],
)
def test_a_value_that_would_be_read_as_code_is_refused(script: str) -> None:
    with pytest.raises(ScriptError, match=r"\$\{x\}|\[\[") as refused:
        with_variables(script, ["x"])
    assert refused.value.remedy


@pytest.mark.parametrize(
    "script",
    [
        "sh -c 'wc -l \"$1\"' sh ${x}",
        "awk -v x=${x} '{print x}' ${x}",
        "sed -e s/a/b/ ${x}",
        "sed -n 1p ${x}",
        'ssh host wc -l "$(printf %q ${x})"',
        "python3 job.py -c ${x}",
        "python3 job.py --in ${x} | sh count.sh ${x} > ${x}.out 2>&1",
        "[ ${x} -eq 1 ] || true",
        '[[ "${x}" == *.tif ]]',
        "case ${x} in *.h5) echo ${x};; esac",
        "a=(1 ${x} 2); f() { echo ${x}; }; f",
        "echo $((1<<2)) ${x}",
        "cat <<< ${x}",
        *Path(__file__).with_name("taken.txt").read_text().split("\n---\n"),
    ],
)
def test_other_places_are_safe(script: str) -> None:
    _, variables = with_variables(script, ["x"])
    assert list(variables) == ["x"]


def test_a_variable_that_a_shell_runs_has_no_value_of_a_call() -> None:
    check_spec(ShellSpec("true", {"BASH_ENV": "/etc/setup.sh", "A": "${x}"}), ["x"])
    with pytest.raises(Invalid, match="BASH_ENV"):
        check_spec(ShellSpec("true", {"BASH_ENV": "${x}"}), ["x"])


def test_references_are_bounded() -> None:
    with pytest.raises(ScriptError, match="references"):
        with_variables("${x} " * 20_000, ["x"])


def test_the_interpreter_decides_what_is_evaluated() -> None:
    with pytest.raises(ScriptError, match="zsh evaluates"):
        with_variables("[ ${x} -eq 1 ]; [ 1 -eq ${x} ]", ["x"], "zsh")


@pytest.mark.parametrize("place", NESTED)
def test_a_value_is_one_word_within_others(place: str, tmp_path: Path) -> None:
    value = " -n * $(touch pwned) 'a  b' "
    found = run(place.replace("PRINT", PRINT), {"x": value}, tmp_path)

    assert [word for line in found.splitlines() for word in json.loads(line)] == [value]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("script", ["a" * (MOST_CHARS + 1), "a\0b", "$(" * 500, "${y:-" * 500])
def test_a_script_that_no_shell_should_get_is_refused(script: str) -> None:
    with pytest.raises(ScriptError):
        with_variables(script, [])


@given(st.text("$()\"'`\\#<E \nx&|;[]", max_size=60))
def test_a_script_without_references_stays_as_it_is(script: str) -> None:
    assert with_variables(script, ["x"]) == (script, {})


def test_a_text_that_no_shell_reads_has_the_value_itself() -> None:
    assert in_text("/data/${ a b }/$${x}/${y}", {"a b": "1 $(x)"}.__getitem__, ["a b"]) == "/data/1 $(x)/${x}/${y}"
