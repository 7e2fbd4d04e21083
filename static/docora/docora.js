// What CSS and htmx cannot do: toasts that are announced, buttons that are busy once pressed, copying a secret.
"use strict";

(() => {
  // A live region announces only what is put into it after the page has loaded.
  const toasts = document.getElementById("toasts");
  if (toasts) {
    toasts.classList.add("enhanced");
    for (const item of toasts.querySelectorAll(".messagelist li")) {
      const urgent = item.classList.contains("error") || item.classList.contains("warning");
      const toast = document.createElement("div");
      toast.className = `toast ${item.className}`;
      const words = document.createElement("p");
      words.textContent = item.textContent;
      const close = document.createElement("button");
      close.type = "button";
      close.setAttribute("aria-label", "Dismiss this message");
      close.textContent = "×";
      close.addEventListener("click", () => toast.remove());
      toast.append(words, close);
      const region = document.getElementById(urgent ? "toasts-urgent" : "toasts-polite");
      setTimeout(() => region.append(toast), 100);
      if (!urgent) {
        // Long enough to be read, and never while it is pointed at or focused.
        const leave = () => (toast.matches(":hover, :focus-within") ? setTimeout(leave, 2000) : toast.remove());
        setTimeout(leave, 6000 + 60 * words.textContent.length);
      }
    }
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || event.defaultPrevented) return;
    if (form.getAttribute("aria-busy") === "true") {
      event.preventDefault();
      return;
    }
    form.setAttribute("aria-busy", "true");
    // After the submission has taken the buttons' values with it.
    setTimeout(() => form.querySelectorAll("button, input[type=submit]").forEach((button) => { button.disabled = true; }));
  });

  // Browsers may keep a page as it was for the way back, also one that is kept by no cache: not with a secret on it.
  window.addEventListener("pagehide", () => {
    for (const secret of document.querySelectorAll(".secret code")) secret.textContent = "";
  });

  // A page that comes back from the history is no longer busy; the server says why it shows no secret any more.
  window.addEventListener("pageshow", (event) => {
    if (event.persisted && document.querySelector(".secret")) location.reload();
    for (const form of document.querySelectorAll("[aria-busy=true]")) {
      form.removeAttribute("aria-busy");
      form.querySelectorAll("button, input[type=submit]").forEach((button) => { button.disabled = false; });
    }
  });

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
      button.textContent = "Selected: copy it now";
    }
  });
})();
