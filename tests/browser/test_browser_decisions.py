"""Decisions and the keyboard in a real browser: one approval from the first look to the ledger, and every control by Tab."""

from __future__ import annotations

import pytest
from deciding_world import running_node
from test_browser_app import address, browser, page, world  # noqa: F401  (fixtures)

from certs.audit_file import AuditLog
from hospital_node.ledger import Ledger

pytest.importorskip("playwright", reason="playwright is absent: install the extra 'test'")
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.sockets]

PAGES = {
    "": "Study chest",
    "privacy?hospital=lakeside": "Privacy budget",
    "decisions?hospital=lakeside": "Decisions",
    "accuracy": "Accuracy",
    "bandwidth": "Bandwidth",
    "rounds": "Rounds",
    "scans?hospital=lakeside": "Scans",
    "study": "Study",
}
MOST_TABS = 150

# every control that a mouse could use, numbered once; of a group of radio buttons the arrow keys reach the others
NUMBER = """() => {
  const seen = new Set(); let number = 0; const names = [];
  const controls = "a[href], button, input, textarea, select, summary, [role=slider], [role=combobox]";
  for (const one of document.querySelectorAll(controls)) {
    if (one.disabled || one.closest("[aria-hidden=true], [inert]") || !one.getClientRects().length) continue;
    if (one.tabIndex < 0 || getComputedStyle(one).visibility === "hidden") continue;
    if (one.type === "radio") { if (seen.has(one.name)) continue; seen.add(one.name); }
    one.dataset.reached = String(number++);
    const said = one.getAttribute("aria-label") || one.innerText || one.title || "";
    names.push([one.tagName, one.type || "", said].join(" ").slice(0, 60));
  }
  return names;
}"""
# what a person sees of the focus: the looks of the control and of what frames it
LOOKS = """number => {
  const looks = [];
  let one = number === null ? document.activeElement : document.querySelector(`[data-reached="${number}"]`);
  const found = one && one.closest("[data-reached]");
  const radio = one && one.type === "radio" && document.querySelector(`input[type=radio][name="${one.name}"][data-reached]`);
  const name = radio ? radio.dataset.reached : found ? found.dataset.reached : null;
  for (let up = 0; one && up < 5; up++, one = one.parentElement) {
    for (const part of [null, "::before", "::after"]) {
      const style = getComputedStyle(one, part);
      looks.push(style.outline, style.boxShadow, style.borderColor, style.backgroundColor, style.textDecoration, style.opacity);
    }
    for (const beside of one.parentElement ? one.parentElement.children : []) {
      if (beside === one) continue;
      const style = getComputedStyle(beside);
      looks.push(style.outline, style.boxShadow, style.borderColor);
    }
  }
  return [name, looks.join("|")];
}"""


def test_an_approval_is_made_in_the_browser_and_kept_by_the_node(address: str, page: Page, world) -> None:  # noqa: F811
    with running_node(world, "nordklinik"):
        page.goto(address + "/decisions?hospital=nordklinik")
        expect(page.get_by_text("Study 'chest' waits for a decision")).to_be_visible()
        expect(page.get_by_text("Under a cap of 8 all 6 rounds that are left fit")).to_be_visible()
        form = page.get_by_test_id("stForm").filter(has=page.get_by_role("button", name="Approve this plan"))
        assert (
            page.get_by_text("What approving would cost").bounding_box()["y"]
            < form.get_by_role("button", name="Approve this plan").bounding_box()["y"]
        )
        form.get_by_role("button", name="Approve this plan").click()
        expect(page.get_by_text("a decision is recorded with a name and a reason").first).to_be_visible()
        assert not (world.state("nordklinik") / "ledger.db").exists()
        form.get_by_label("Your name").fill("Dr K. Weber")
        form.get_by_label("Reason").fill("board decision 12")
        form.get_by_role("button", name="Approve this plan").click()
        expect(page.get_by_text("Approved by Dr K. Weber").first).to_be_visible()
        expect(page.get_by_text("Study 'chest' is approved")).to_be_visible()
        expect(page.get_by_text("ledger entry 2")).to_be_visible()
    approved = Ledger.open(world.state("nordklinik") / "ledger.db").approval(world.plan)
    assert approved is not None
    assert (approved.by, approved.reason) == ("Dr K. Weber", "board decision 12")
    assert [one.action.by for one in AuditLog.within(world.state("nordklinik")).read()] == ["Dr K. Weber"]


@pytest.mark.parametrize("path", PAGES)
def test_every_control_is_reached_by_tab_and_shows_it(address: str, page: Page, path: str) -> None:  # noqa: F811
    page.goto(f"{address}/{path}")
    expect(page.get_by_role("heading", name=PAGES[path], exact=True)).to_be_visible()
    expect(page.get_by_text("Live · looked at")).to_be_visible()
    page.get_by_text("Pause", exact=True).click()  # nothing is drawn anew while the keys are pressed
    expect(page.get_by_test_id("stSidebar").get_by_text("Paused")).to_be_visible()
    page.wait_for_timeout(1_000)
    names = page.evaluate(NUMBER)
    assert len(names) > 5
    page.evaluate("() => document.activeElement.blur()")
    focused: dict[str, str] = {}
    for _ in range(MOST_TABS):
        page.keyboard.press("Tab")
        number, looks = page.evaluate(LOOKS, None)
        if number is not None:
            focused.setdefault(number, looks)
        if len(focused) == len(names):
            break
    assert [name for number, name in enumerate(names) if str(number) not in focused] == []
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_timeout(300)
    unseen = [names[int(number)] for number, looks in focused.items() if page.evaluate(LOOKS, number)[1] == looks]
    assert unseen == [], "the focus cannot be seen"
