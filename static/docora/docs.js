// The documentation on narrow screens and on paper.
"use strict";

(() => {
  // Fold the table of contents where there is no room for it beside the text.
  const contents = document.querySelector(".contents details");
  const wide = matchMedia("(min-width: 50.01rem)");
  const arrange = () => { contents.open = wide.matches; };
  arrange();
  wide.addEventListener("change", arrange);
  contents.addEventListener("click", (event) => {
    if (!wide.matches && event.target.closest("a")) contents.open = false;
  });

  // Unfold everything for printing.
  const folded = document.querySelectorAll("main details:not([open])");
  let printed = [];
  addEventListener("beforeprint", () => {
    printed = [...folded].filter((details) => !details.open);
    for (const details of printed) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of printed) details.open = false;
  });
})();
