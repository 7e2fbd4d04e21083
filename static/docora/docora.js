// What CSS and htmx cannot do: announce toasts, make boxes scrollable with the keyboard, focus the search box, and refresh
// panels except while the user is working in them.
"use strict";

(() => {
  // Screen readers announce only text that is put into a live region after the page has loaded. Until then, the list keeps the
  // messages' place, so that nothing below them moves.
  const toasts = document.getElementById("toasts");
  if (toasts) {
    toasts.classList.add("enhanced");
    for (const item of toasts.querySelectorAll(".messagelist li")) {
      const urgent = item.classList.contains("error") || item.classList.contains("warning");
      const toast = document.createElement("div");
      toast.className = `toast ${item.className}`;
      const text = document.createElement("p");
      text.textContent = item.textContent;
      const close = document.createElement("button");
      close.type = "button";
      close.setAttribute("aria-label", "Dismiss this message");
      close.textContent = "×";
      close.addEventListener("click", () => {
        toast.remove();
        item.remove();
        // Keep the keyboard focus: move it to the next message, or to the start of the content.
        (toasts.querySelector(".toast button") ?? document.getElementById("content-start"))?.focus();
      });
      toast.append(text, close);
      const region = document.getElementById(urgent ? "toasts-urgent" : "toasts-polite");
      setTimeout(() => region.append(toast), 100);
    }
  }

  // Browsers may keep a page in memory for the Back button, even one that must not be cached. Do not keep its secrets.
  window.addEventListener("pagehide", () => {
    for (const secret of document.querySelectorAll(".secret :is(code, pre)")) secret.textContent = "";
  });

  // Put the focus in front of the buttons of a confirmation, or on the first invalid field, without scrolling past the text above.
  // Screen readers read that text, because it names the group of the buttons.
  const start = document.querySelector("[data-start]");
  (document.querySelector("[data-invalid] [aria-invalid=true]") ?? start)?.focus({ preventScroll: true });

  // A page of secrets that is restored from the history is reloaded: the server says why it shows none.
  window.addEventListener("pageshow", (event) => {
    if (event.persisted && document.querySelector(".secret")) location.reload();
  });

  // Make boxes that scroll sideways focusable, so that the keyboard can scroll them. Boxes that fit are not tab stops.
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
  document.addEventListener("htmx:afterSwap", markScrolling);

  // Without enough room beside the menu for a table, the menu is closed, unless the user has opened or closed it before.
  const menu = document.getElementById("toggle-nav-sidebar");
  const isOpen = "django.admin.navSidebarIsOpen";
  const isCut = () => [...document.querySelectorAll(".table-scroll, .results")].some((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth);
  if (menu?.checkVisibility() && localStorage.getItem(isOpen) === null && isCut()) {
    menu.click();
    localStorage.removeItem(isOpen);  // it was not the user's choice
  }

  // An open <details> with an id stays open when a poll replaces the content around it.
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    for (const details of event.detail.fragment.querySelectorAll("details[id]")) {
      details.open = document.getElementById(details.id)?.open ?? details.open;
    }
  });

  // A part is not replaced if it stays the same, nor while the user presses a button in it or a form in it is being sent, and a
  // [data-live-part] not while text in it is selected.
  const isPressed = (part) => part.querySelector(":active, form[aria-busy=true]") !== null;
  const isSelected = (part) => getSelection().type === "Range" && getSelection().containsNode(part, true);
  const isInUse = (part) => isPressed(part) || (part.matches("[data-live-part]") && isSelected(part));
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    const { target: part, fragment } = event.detail;
    if (part.isEqualNode(fragment.firstElementChild) || isInUse(part)) event.preventDefault();
  });
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.target.matches("[data-polls]") && isInUse(event.target)) event.preventDefault();
  });

  // A box with an id keeps its scroll position when its content is refreshed.
  const scrolledTo = new Map();
  document.addEventListener("htmx:beforeSwap", () => {
    for (const box of document.querySelectorAll(".table-scroll[id]")) scrolledTo.set(box.id, box.scrollLeft);
  });
  document.addEventListener("htmx:afterSwap", () => {
    for (const box of document.querySelectorAll(".table-scroll[id]")) box.scrollLeft = scrolledTo.get(box.id) ?? 0;
  });

  // A request may end at a whole page, such as the sign-in page. Go there instead of showing it inside of this one. After a poll,
  // whose address is not that of a page, reload this one.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { shouldSwap, xhr, requestConfig: { verb } } = event.detail;
    if (!shouldSwap || !/^\s*<!doctype html/i.test(xhr.responseText)) return;
    if (verb === "get" && xhr.status >= 400) return; // a proxy's page, see below
    event.preventDefault();
    if (verb === "get") location.reload();
    else location.assign(xhr.responseURL);
  });

  // Of error responses, only Docora's own notices are shown. A proxy may respond with 404 while Docora restarts. An empty response
  // to a poll is an error, too: it would remove the element that polls, or its content, and so end the polls.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { target, xhr, requestConfig: { elt } } = event.detail;
    const isEmpty = target === elt && xhr.responseText.trim() === "";
    if (!isEmpty && (xhr.status < 400 || xhr.responseText.includes("data-notice"))) return;
    event.detail.shouldSwap = false;
    event.detail.isError = true;
  });

  // If a swap removes the focused element, move the focus to its nearest ancestor that still exists, not to the page's top.
  let focusedIds = [];
  document.addEventListener("htmx:beforeSwap", () => {
    focusedIds = [];
    for (let node = document.activeElement; node && node !== document.body; node = node.parentElement) if (node.id) focusedIds.push(node.id);
  });
  document.addEventListener("htmx:afterSwap", () => {
    if (focusedIds.length === 0 || document.activeElement !== document.body) return;
    const ancestor = document.getElementById(focusedIds.find((id) => document.getElementById(id)));
    if (ancestor && !ancestor.hasAttribute("tabindex")) ancestor.setAttribute("tabindex", "-1");
    ancestor?.focus({ preventScroll: true });
  });

  // The key / focuses the search box, as on GitHub, unless the user is typing or chooses from a list.
  const searchBox = document.querySelector("#site-search input");
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || !searchBox) return;
    if (event.target.closest?.("input, textarea, select, [contenteditable], [role=combobox]")) return;
    event.preventDefault();
    searchBox.focus();
    searchBox.select();
  });

  // Without htmx, old numbers would look like new ones. It is missing if the network fails, or if Docora was just updated.
  if (!window.htmx && document.querySelector("[hx-get]")) {
    const notice = document.createElement("p");
    notice.className = "notice no-script";
    notice.setAttribute("role", "alert");
    notice.textContent = "A part of this page couldn't be loaded, so it doesn't refresh. Reload it.";
    toasts?.before(notice);
  }

  // Panels that refresh themselves. [data-live] contains the bar (docora/live_bar.html) and the element that htmx refreshes.
  for (const panel of window.htmx ? document.querySelectorAll("[data-live]") : []) {
    const body = panel.querySelector("[hx-get]");
    const age = panel.querySelector("[data-live-age]");
    const pause = panel.querySelector("[data-live-pause]");
    let updated = Date.now();
    let requested = false; // the user pressed Refresh, which works even while the panel is paused
    let forced = false; // the current request is that of Refresh
    let problem = "";
    panel.querySelector(".live-bar").hidden = false;

    const paused = () => pause.getAttribute("aria-pressed") === "true";
    // Do not replace anything that the user is typing in, has opened or has selected, or a form that is being sent.
    const busy = () =>
      document.querySelector("form[aria-busy=true]") !== null ||
      body.querySelector("input:focus, select:focus, textarea:focus, details[open], [aria-busy=true], :active") !== null ||
      isSelected(body);
    const showAge = () => {
      const seconds = Math.round((Date.now() - updated) / 1000);
      const since = seconds < 2 ? "just now" : seconds < 90 ? `${seconds} s ago` : `${Math.round(seconds / 60)} min ago`;
      age.textContent = problem ? `${problem} Last update ${since}` : `Updated ${since}${paused() ? ", paused" : ""}`;
    };

    body.addEventListener("htmx:beforeRequest", (event) => {
      if (event.target !== body) return;
      if (!requested && (paused() || document.hidden || busy())) event.preventDefault();
      forced = requested;
      requested = false;
    });
    // The user may have begun to work in the panel since the request was sent. The next request is soon enough.
    body.addEventListener("htmx:beforeSwap", (event) => {
      if (event.target === body && !forced && busy()) event.preventDefault();
    });
    body.addEventListener("htmx:afterRequest", (event) => {
      if (event.target !== body) return;
      const { successful, failed, xhr: { status } } = event.detail;
      const answered = status >= 200 && status < 400 && !failed; // htmx also calls a notice successful
      if (answered && successful) updated = Date.now(); // not if the content was not replaced
      problem = answered ? "" : status ? "Couldn't refresh." : "The server isn't responding.";
      // The user is signed out or no longer allowed, or the object is gone. Further requests would not change that.
      if (successful && !answered) pause.setAttribute("aria-pressed", "true");
      showAge();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) htmx.trigger(body, "docora:refresh");
    });
    panel.querySelector("[data-live-refresh]").addEventListener("click", () => {
      // A part of the page that a notice has replaced no longer polls. Only reloading the page brings it back.
      if (document.querySelector("[data-notice]")) return location.reload();
      requested = true;
      htmx.trigger(body, "docora:refresh");
    });
    pause.addEventListener("click", () => {
      pause.setAttribute("aria-pressed", String(!paused()));
      showAge();
    });
    setInterval(showAge, 1000);
  }

  // A progress fragment whose poll fails says so, and hides its rate. The next successful poll replaces the fragment.
  const markLost = (event) => {
    const fragment = event.detail.elt;
    if (!fragment.matches?.("[data-polls]") || fragment.querySelector(".connection-lost")) return;
    const text = document.createElement("span");
    text.className = "connection-lost bad";
    if (!document.querySelector(".connection-lost")) text.setAttribute("role", "status"); // say it once
    text.textContent = "Connection lost, retrying";
    (fragment.querySelector(".progress-text") ?? fragment).append(text);
    fragment.classList.add("is-lost");
  };

  // A form whose request got no answer says so in its list item, which the next answer replaces.
  const markUnanswered = (event) => {
    const form = event.detail.elt;
    const message = form.dataset?.unanswered;
    const item = form.closest("li");
    if (!message || !item) return;
    item.querySelector(".unanswered")?.remove();
    const text = document.createElement("p");
    text.className = "unanswered bad";
    text.textContent = message;
    item.append(text);
    const spoken = document.getElementById("spoken");
    if (spoken) spoken.textContent = message;
  };
  for (const name of ["htmx:sendError", "htmx:timeout", "htmx:responseError"]) {
    document.addEventListener(name, markLost);
    document.addEventListener(name, markUnanswered);
  }

  // Some elements that Django's scripts create tell screen readers too little: help icons have a name but no role, and selects
  // with a search lose their label.
  addEventListener("load", () => {
    for (const icon of document.querySelectorAll(".help-tooltip[aria-label]")) icon.setAttribute("role", "img");
  });
  // jQuery runs its callbacks in their order, so this one runs after those of Django.
  window.django?.jQuery?.(() => {
    for (const select of document.querySelectorAll("select.select2-hidden-accessible")) {
      const label = select.labels[0];
      const box = select.nextElementSibling.querySelector("[role=combobox]");
      const chosen = box.querySelector("[role=textbox]");
      label.id ||= `${select.id}-label`;
      for (const name of ["role", "aria-readonly"]) chosen.removeAttribute(name);
      box.setAttribute("aria-labelledby", `${label.id} ${chosen.id}`);
      window.django.jQuery(select).on("select2:open", () => {
        box.setAttribute("aria-controls", `select2-${select.id}-results`);
        document.querySelector(".select2-container--open .select2-search__field")?.setAttribute("aria-label", `Search: ${label.textContent}`);
      });
    }
  });
})();
