// Buttons that copy the text of another element, for the admin and the documentation: [data-copy] names it by its id.
"use strict";

(() => {
  // A live region announces what is put into it after the page has loaded.
  const said = document.createElement("p");
  said.className = "visually-hidden";
  said.setAttribute("role", "status");
  document.body.append(said);

  // Without this script, or where a browser lets nobody copy, they would do nothing: they are shown from here.
  for (const button of document.querySelectorAll("[data-copy][hidden]")) button.hidden = false;

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    let words = "Copied";
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      words = "Selected: copy it now";
    }
    const before = (button.dataset.words ??= button.textContent);
    button.textContent = said.textContent = words;
    setTimeout(() => {
      button.textContent = before;
      said.textContent = "";
    }, 4000);
  });
})();
