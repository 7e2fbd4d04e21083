// The documentation on narrow screens and on paper.
"use strict";

(() => {
  // The list of contents is in the way where it does not lie beside the text.
  const contents = document.querySelector(".contents details");
  const wide = matchMedia("(min-width: 50.01rem)");
  const arrange = () => { contents.open = wide.matches; };
  arrange();
  wide.addEventListener("change", arrange);
  contents.addEventListener("click", (event) => {
    if (!wide.matches && event.target.closest("a")) contents.open = false;
  });

  // Paper shows what is folded.
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
