"""What pyproject.toml cannot say: conf/ lies beside egrpo/ in the checkout and inside it (egrpo/conf) in the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["egrpo", "egrpo.*"]), "egrpo.conf"],
    package_dir={"egrpo.conf": "conf"},
    package_data={"egrpo": ["**/assets/**"], "egrpo.conf": ["**/*.yaml", "**/*.json"]},
)
