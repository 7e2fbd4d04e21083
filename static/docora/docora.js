// What CSS and htmx cannot do: toasts that are announced, buttons that are busy once pressed, boxes that
// scroll with the keyboard, and panels that refresh themselves unless somebody is at work in them.
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
      close.addEventListener("click", () => {
        toast.remove();
        // Whoever came here with the keyboard goes on from the next message, or from the beginning of the page's content.
        (toasts.querySelector(".toast button") ?? document.getElementById("content-start"))?.focus();
      });
      toast.append(words, close);
      const region = document.getElementById(urgent ? "toasts-urgent" : "toasts-polite");
      setTimeout(() => region.append(toast), 100);
      if (!urgent) {
        // Long enough to be read. Only seconds count in which it can be, and nobody points at it or has come to it.
        let seconds = 6 + Math.ceil(words.textContent.length / 15);
        const timer = setInterval(() => {
          if (document.hidden || toast.matches(":hover, :focus-within")) return;
          seconds -= 1;
          if (seconds > 0) return;
          clearInterval(timer);
          toast.remove();
        }, 1000);
      }
    }
  }

  // Also those that stand elsewhere on the page and belong to the form by its id.
  const buttonsOf = (form) => [...form.elements].filter((element) => element.matches("button, input[type=submit]"));

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.method !== "post" || event.defaultPrevented) return;
    if (form.getAttribute("aria-busy") === "true") {
      event.preventDefault();
      return;
    }
    form.setAttribute("aria-busy", "true");
    // After the submission has taken the buttons' values with it.
    setTimeout(() => buttonsOf(form).forEach((button) => { button.disabled = true; }));
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
      buttonsOf(form).forEach((button) => { button.disabled = false; });
    }
  });

  // Focus on what a swap has taken away goes to the nearest thing around it that is still there, not to the page's top.
  let around = [];
  document.addEventListener("htmx:beforeSwap", () => {
    around = [];
    for (let at = document.activeElement; at && at !== document.body; at = at.parentElement) if (at.id) around.push(at.id);
  });
  document.addEventListener("htmx:afterSwap", () => {
    if (around.length === 0 || document.activeElement !== document.body) return;
    const place = document.getElementById(around.find((id) => document.getElementById(id)));
    place?.setAttribute("tabindex", "-1");
    place?.focus({ preventScroll: true });
  });

  // Panels that refresh themselves: [data-live] holds the bar (docora/live_bar.html) and the element that htmx refreshes.
  for (const panel of document.querySelectorAll("[data-live]")) {
    const body = panel.querySelector("[hx-get]");
    const age = panel.querySelector("[data-live-age]");
    const pause = panel.querySelector("[data-live-pause]");
    let updated = Date.now();
    let asked = false; // by the person, who gets it even while the panel is paused
    let trouble = "";
    panel.querySelector(".live-bar").hidden = false;

    const paused = () => pause.getAttribute("aria-pressed") === "true";
    // What somebody types, opens or selects must not be taken away from under the hand.
    const busy = () =>
      body.querySelector("input:focus, select:focus, textarea:focus, details[open], [aria-busy=true]") !== null ||
      (getSelection().type === "Range" && body.contains(getSelection().anchorNode));
    const tell = () => {
      const seconds = Math.round((Date.now() - updated) / 1000);
      const since = seconds < 2 ? "just now" : seconds < 90 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`;
      age.textContent = trouble ? `${trouble} Last update ${since}` : `Updated ${since}${paused() ? ", paused" : ""}`;
    };

    body.addEventListener("htmx:beforeRequest", (event) => {
      if (event.target !== body) return;
      if (!asked && (paused() || document.hidden || busy())) event.preventDefault();
      asked = false;
    });
    body.addEventListener("htmx:afterRequest", (event) => {
      if (event.target !== body) return;
      const status = event.detail.xhr.status;
      if (event.detail.successful) updated = Date.now();
      trouble = event.detail.successful ? "" : status ? "Not refreshed." : "The server does not answer.";
      // Signed out, or no longer allowed: the panel says so now, and asking on would not change it.
      if ([401, 403, 404].includes(status)) pause.setAttribute("aria-pressed", "true");
      tell();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) htmx.trigger(body, "docora:refresh");
    });
    panel.querySelector("[data-live-refresh]").addEventListener("click", () => {
      asked = true;
      htmx.trigger(body, "docora:refresh");
    });
    pause.addEventListener("click", () => {
      pause.setAttribute("aria-pressed", String(!paused()));
      tell();
    });
    setInterval(tell, 1000);
  }

  // What scrolls sideways can be come to, and then scrolled, with the keyboard; what shows all of itself is no stop.
  const markScrolling = () => {
    for (const box of document.querySelectorAll(".table-scroll, pre")) {
      const scrolls = box.scrollWidth > box.clientWidth;
      for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", "Scrolls sideways"]]) {
        if (scrolls) box.setAttribute(name, value);
        else box.removeAttribute(name);
      }
    }
  };
  markScrolling();
  addEventListener("load", markScrolling);
  addEventListener("resize", markScrolling);
  document.addEventListener("toggle", markScrolling, true);
  document.addEventListener("htmx:afterSettle", markScrolling);

  // Two of Django's own parts say too little: a picture is the search field's only label, and icons are named, but not
  // said to be pictures. The latter are made by a script, once the page has loaded.
  document.getElementById("searchbar")?.setAttribute("aria-label", "Search");
  addEventListener("load", () => {
    for (const icon of document.querySelectorAll(".help-tooltip[aria-label]")) icon.setAttribute("role", "img");
  });
})();
