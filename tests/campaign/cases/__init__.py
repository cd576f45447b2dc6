"""All cases, by command."""

from tests.campaign.cases import data, drawing, judging, models, rewards, settings, stopping, studies

CASES = [
    *settings.CASES,
    *data.CASES,
    *rewards.CASES,
    *drawing.CASES,
    *judging.CASES,
    *studies.CASES,
    *models.CASES,
    *stopping.CASES,
]
