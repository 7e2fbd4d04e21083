// Sends a form only once. Pages load this script before their content, because on a slow connection users can press a button
// while the other scripts are still loading.
"use strict";

(() => {
  // Includes buttons elsewhere on the page that belong to the form by its id.
  const buttonsOf = (form) => [...form.elements].filter((element) => element.matches("button, input[type=submit]"));

  // With these keys, the answer opens in another tab or window, and this page stays.
  let stays = false;
  document.addEventListener("click", (event) => { stays = event.ctrlKey || event.metaKey || event.shiftKey; }, true);

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || event.defaultPrevented || stays) return;
    if (form.getAttribute("aria-busy") === "true") {
      event.preventDefault();
      return;
    }
    form.setAttribute("aria-busy", "true");
    // Wait until the submission has included the value of the pressed button.
    setTimeout(() => buttonsOf(form).forEach((button) => { button.disabled = true; }));
  });

  const release = () => {
    for (const form of document.querySelectorAll("[aria-busy=true]")) {
      form.removeAttribute("aria-busy");
      buttonsOf(form).forEach((button) => { button.disabled = false; });
    }
  };
  // A page restored from the history is no longer busy. A page that was loaded just now may be.
  addEventListener("pageshow", (event) => { if (event.persisted) release(); });
  // The user has stopped the request, for example with Esc. Older browsers don't say so, but stop it with that key, too.
  if (window.navigation) navigation.addEventListener("navigateerror", release);
  else addEventListener("keydown", (event) => { if (event.key === "Escape" && !event.defaultPrevented) release(); });
})();
