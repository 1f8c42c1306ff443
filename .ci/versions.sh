# Read by .ci/minimal and .ci/latest, in the folder of the checkout.

# make_environment FOLDER RESOLUTION [CONSTRAINT ...]: a virtual environment with what the commands and tests need
make_environment() {
  local folder=$1 resolution=$2 extras='' name
  shift 2
  for name in generate compare attribute distill loggers view; do extras="$extras --extra $name"; done
  "${PYTHON:-python3}" -m venv "$folder"
  "$folder/bin/python" -m pip --disable-pip-version-check install -q uv
  printf '%s\n' "$@" >"$folder/constraints.txt"
  # shellcheck disable=SC2086
  "$folder/bin/uv" pip compile -q --resolution "$resolution" --constraint "$folder/constraints.txt" $extras \
    --python "$folder/bin/python" pyproject.toml --output-file "$folder/versions.txt"
  "$folder/bin/python" -m pip --disable-pip-version-check install -q --no-compile -r "$folder/versions.txt"
  # what the tests themselves use, without changing any of these
  "$folder/bin/python" -m pip --disable-pip-version-check install -q -c "$folder/versions.txt" \
    'pytest>=7.4' 'pytest-xdist>=3.5' 'hypothesis>=6.100,<7' 'setuptools>=70.1'
}

# run_tests FOLDER [pytest's arguments]: without those of the site and the notebooks, whose packages are tools of development
run_tests() {
  local folder=$1
  shift
  export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONPATH="$PWD"
  "$folder/bin/python" -m pytest -rs --ignore tests/test_site.py --ignore tests/test_notebooks.py "$@"
}
