// Copy buttons of the admin and the documentation. The attribute [data-copy] is the id of the element whose text is copied.
"use strict";

(() => {
  // Screen readers announce text that is put into this live region.
  const announcer = document.createElement("p");
  announcer.className = "visually-hidden";
  announcer.setAttribute("role", "status");
  document.body.append(announcer);

  // The buttons do nothing without this script, so the page hides them until it runs.
  for (const button of document.querySelectorAll("[data-copy][hidden]")) button.hidden = false;

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    let message = "Copied";
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      message = "Selected: copy it now";
    }
    const label = (button.dataset.label ??= button.textContent);
    button.textContent = announcer.textContent = message;
    setTimeout(() => {
      button.textContent = label;
      announcer.textContent = "";
    }, 4000);
  });
})();
