"""A stored study planned again: on this machine, with the images and the code that it began with.

Promises: what this machine lacks of them is an HpoError of one line, which says where it was looked for. Knows nothing
of trials.
"""

from __future__ import annotations

from pathlib import Path
from typing import overload

import optuna

from hpo.errors import CodeError
from hpo.search.plan import ObjectivePlan, Plan, plan
from hpo.search.study_records import CODE, check_code, check_data, user_attrs_of
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.usercode import files_of, missing, nowhere


@overload
def plan_again(study: Study, stored: optuna.Study, device: str, *, changed_code: bool = False) -> Plan: ...
@overload
def plan_again(
    study: ObjectiveStudy, stored: optuna.Study, device: str, *, changed_code: bool = False
) -> ObjectivePlan: ...
def plan_again(
    study: AnyStudy, stored: optuna.Study, device: str, *, changed_code: bool = False
) -> Plan | ObjectivePlan:
    """Return the plan of a study that is the stored one, or one that is made of it.

    Raises what `plan` raises, DataError or HpoError where the images are missing or others, and CodeError where the
    code is, or where it is another, unless `changed_code` allows that.
    """
    if absent := missing(files_of(study.references), study.folder):
        where = nowhere(absent[0], Path(user_attrs_of(stored).get(CODE, {"folder": study.folder})["folder"]))
        raise CodeError(
            f"study '{stored.study_name}': needs {where}; bring it there, or work in the folder that has it"
        )
    planned: Plan | ObjectivePlan = plan(study, device)
    if isinstance(planned, Plan) and isinstance(study, Study):
        check_data(study, planned.images, stored)
    if not changed_code:
        check_code(study, planned.code, stored)
    return planned
